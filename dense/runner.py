"""MMEngine's runner with a screen for people."""

from typing import Any

from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from dense.screen import log_into


@RUNNERS.register_module()
class DenseRunner(Runner):
    """Runner whose log goes to the file in the work dir only; the screen belongs to the progress bar and notices."""

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Build the logger.

        Args:
            log_level: Least level of what is logged.
            log_file: The file; named after the time of the start by default.
            **kwargs: Arguments of ``MMLogger``.
        """
        logger = super().build_logger(log_level, log_file, **kwargs)
        log_into(logger)
        return logger
