"""Makes up for the validation that a stopped run missed, if something in the training depends on it."""

from typing import Any

from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

KEY = 'early_stopping'


@HOOKS.register_module()
class DueValidationHook(Hook):
    """Validate before the first step of a resumed run if the checkpoint was saved just before a validation.

    A loop saves before it validates. Learning rates that fall when a metric does not rise, the best score and early
    stopping would never see the result of that validation. If none of them is used, the validation is skipped, unless
    the run was stopped by a signal: then it goes on as if nothing had happened.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._is_validating = False
        self._was_validated = False
        self._is_stopping = False
        self._was_stopped = False

    def note_stop(self, runner: Any, step: int) -> bool:
        """Note that the run stops here, without its validation if there is one after this step.

        Args:
            runner: The runner.
            step: Number of completed steps.

        Returns:
            Whether a validation is due.
        """
        self._is_stopping, self._is_validating = True, False
        return _is_due(runner, step)

    def before_val_epoch(self, runner: Any) -> None:
        """Note that a checkpoint saved now includes the metrics."""
        self._is_validating = True

    def after_val(self, runner: Any) -> None:
        """Note that the next checkpoint is saved during training."""
        self._is_validating = False

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add whether the metrics are known, and how long early stopping has waited."""
        checkpoint['meta'].update(validated=self._is_validating, stopped=self._is_stopping)
        waits = [[hook.wait_count, float(hook.best_score)] for hook in _early_stopping(runner)]
        if waits:
            checkpoint['meta'][KEY] = waits

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Read what :meth:`before_save_checkpoint` added; a run that only starts from weights ignores it."""
        meta = checkpoint.get('meta', {})
        self._was_validated, self._was_stopped = meta.get('validated', False), meta.get('stopped', False)
        for hook, (count, score) in zip(_early_stopping(runner), meta.get(KEY, []), strict=False):
            if runner._resume:
                hook.wait_count, hook.best_score = count, score

    def before_train(self, runner: Any) -> None:
        """Validate if it is due."""
        matters = self._was_stopped or _hangs_on_metrics(runner)
        if runner.iter > 0 and not self._was_validated and matters and _is_due(runner, runner.iter):
            runner.logger.info(f'the validation after {runner.iter} steps comes first')
            runner.val_loop.run()


def _early_stopping(runner: Any) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _hangs_on_metrics(runner: Any) -> bool:
    schedulers = runner.param_schedulers or []
    groups = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    return (
        bool(_early_stopping(runner))
        or any(isinstance(hook, CheckpointHook) and hook.save_best for hook in runner.hooks)
        or any(_reads_metrics(scheduler) for group in groups for scheduler in group)
    )


def _reads_metrics(scheduler: _ParamScheduler) -> bool:
    return bool(getattr(scheduler, 'need_val_args', False))


def _is_due(runner: Any, step: int) -> bool:
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, EpochBasedTrainLoop):
        is_between = step == loop.epoch * len(loop.dataloader)
        done, last = loop.epoch, loop.max_epochs
    else:
        is_between, done, last = True, step, loop.max_iters
    return is_between and done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
