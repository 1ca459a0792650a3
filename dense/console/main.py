"""Runs the commands in ``tools/``: two lines for an error, and an exit status."""

import contextlib
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from dense.console.explain_error import explain, last_line
from dense.errors import RunStopped

USER_ERROR, INTERRUPTED = 2, 130
STOPPED = 75  # "temporary failure" of sysexits.h: the same command with --resume goes on


def run(command: Callable[[], None], *, show_traceback: bool = False, log_dir: str | Path | None = None) -> int:
    """Run a command; on an error write two lines to standard error: the cause and how to fix it.

    Args:
        command: What to run.
        show_traceback: Let the error through with its traceback instead.
        log_dir: Where the traceback of an unexpected error is kept; a temporary folder by default.

    Returns:
        Exit status: 0, 2 after an error, 75 if a signal stopped a run that was saved, 130 after Ctrl-C elsewhere.
    """
    try:
        command()
    except RunStopped:
        return STOPPED
    except KeyboardInterrupt:
        sys.stderr.write('interrupted; if a checkpoint was saved, --resume continues from it\n')
        return INTERRUPTED
    except Exception as error:
        if show_traceback:
            raise
        cause, remedy = explain(error) or _unexpected(error, log_dir)
        sys.stderr.write(f'error: {_one_line(cause)}\nremedy: {_one_line(remedy)}\n')
        return USER_ERROR
    return 0


def _one_line(text: str) -> str:
    return re.sub(r'\s+', ' ', text).strip()


def _unexpected(error: Exception, log_dir: str | Path | None) -> tuple[str, str]:
    path = _save(''.join(traceback.format_exception(error)), log_dir)
    return (
        f'unexpected {last_line(error)[:300]}',
        f'the traceback is in {path}; --traceback shows it at once',
    )


def _save(text: str, log_dir: str | Path | None) -> Path:
    name = f'error-{time.strftime("%Y%m%d-%H%M%S")}.txt'
    # The work dir itself may be the problem.
    with contextlib.suppress(OSError):
        if log_dir is not None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            (Path(log_dir) / name).write_text(text)
            return Path(log_dir) / name
    path = Path(tempfile.mkdtemp(prefix='dense-')) / name
    path.write_text(text)
    return path
