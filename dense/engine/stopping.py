"""Stops a run on a signal after saving it, and saves it every so many minutes; all processes at the same step."""

import time
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import distributed

from dense.console.output import notice
from dense.engine.due_validation import DueValidationHook
from dense.engine.saving import AtomicCheckpointHook
from dense.engine.signals import StopRequest, name_of
from dense.errors import RunStopped, UserError

PAUSE = 1.0  # seconds of training, at most, between two agreements
MOST_STEPS = 100
WAITING = 'dense/stop'  # key in the store of the processes: somebody was asked to stop


@HOOKS.register_module()
class StopHook(Hook):
    """Finish the step, save and end the run on SIGTERM, SIGUSR1 or Ctrl-C; save every so many minutes if asked.

    A signal may reach one process of several. They agree about once a second of training, by a sum over two numbers on
    the host, so that all of them save and stop at the same step. A validation is given up; the resumed run makes up
    for it.

    Args:
        save_every: Minutes between two checkpoints, besides those of the checkpoint hook; None for none.
    """

    priority = 'LOWEST'  # after everything else that a step does

    def __init__(self, save_every: float | None = None) -> None:
        self.save_every = save_every
        self._request = StopRequest()
        self._saver: AtomicCheckpointHook
        self._group: Any = None
        self._next_check = 0
        self._looked = (0, 0.0)  # step and time of the last agreement

    def before_train(self, runner: Any) -> None:
        """Listen to signals, and check that all processes start at the same step.

        Raises:
            UserError: They do not: their work dirs hold different files.
        """
        self._request = getattr(runner, 'stop_request', self._request)
        self._request.listen(echoes=get_world_size() > 1)
        self._looked = runner.iter, time.monotonic()
        self._saver = _saver(runner)
        if get_world_size() > 1:
            self._group = distributed.new_group(backend='gloo')  # nothing waits for a GPU
            steps = torch.tensor([runner.iter, -runner.iter])
            distributed.all_reduce(steps, distributed.ReduceOp.MAX, group=self._group)
            if int(steps[0]) != -int(steps[1]):
                raise UserError(
                    f'the processes continue from different steps: {-int(steps[1])} to {int(steps[0])}',
                    'give all of them the same work dir, or name the checkpoint with --resume PATH',
                )

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save, and perhaps stop, if one of the processes was asked to.

        Raises:
            RunStopped: The run was saved and ends.
        """
        step = runner.iter + 1
        if step < self._next_check:
            return
        stop, save = self._agree(step)
        if stop:
            self._stop(runner, step, stop)
        elif save:
            self._saver.save_between(runner, step)

    def before_val_epoch(self, runner: Any) -> None:
        """Give up before the first batch if this process was asked to stop."""
        self._leave_validation(runner, is_last=len(runner.val_dataloader) == 0)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Give the validation up if one of the processes was asked to stop.

        Raises:
            RunStopped: The run was saved and ends.
        """
        self._leave_validation(runner, is_last=batch_idx + 1 == len(runner.val_dataloader))

    def after_train(self, runner: Any) -> None:
        """Handle signals as before."""
        self._request.restore()

    def _agree(self, step: int) -> tuple[int, bool]:
        """Return the signal that some process got, and whether it is time to save; choose when to ask again."""
        now = time.monotonic()
        is_due = self.save_every is not None and now - self._saver.saved_at >= 60 * self.save_every
        if self._group is None:
            return self._request.signal, is_due
        seconds = (now - self._looked[1]) / max(1, step - self._looked[0])
        wishes = torch.tensor([float(self._request.signal), float(is_due), seconds])
        distributed.all_reduce(wishes, distributed.ReduceOp.MAX, group=self._group)
        self._looked = step, now
        self._next_check = step + max(1, min(MOST_STEPS, int(PAUSE / max(float(wishes[2]), 1e-6))))
        return int(wishes[0]), bool(wishes[1])

    def _leave_validation(self, runner: Any, *, is_last: bool) -> None:
        """Save and stop if some process was asked to; ``is_last`` where this one has no batch left."""
        # Processes may have different numbers of batches. Each takes part in one agreement: at its last batch, or at
        # the first that finds that somebody was asked to stop.
        stop = self._request.signal
        if self._group is not None:
            if not (stop or is_last or self._somebody_waits()):
                return
            if stop:
                _store().set(WAITING, str(stop))
            wish = torch.tensor([stop])
            distributed.all_reduce(wish, distributed.ReduceOp.MAX, group=self._group)
            stop = int(wish[0])
        if not stop:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # gives the model its own weights back
        self._stop(runner, runner.iter, stop, is_due=True)

    def _somebody_waits(self) -> bool:
        now = time.monotonic()
        if now - self._looked[1] < PAUSE:
            return False
        self._looked = self._looked[0], now
        return bool(_store().check([WAITING]))

    def _stop(self, runner: Any, step: int, signal: int, is_due: bool = False) -> None:
        due = next((hook for hook in runner.hooks if isinstance(hook, DueValidationHook)), None)
        if due is not None:
            is_due = due.note_stop(runner, step) or is_due
        self._saver.save_between(runner, step, again=is_due)
        try:
            self._saver.finish(runner)
        finally:
            if self._group is not None:  # a launcher ends all processes as soon as one has ended
                distributed.barrier(group=self._group)
        notice(f'stopped by {name_of(signal)} after {step} steps; saved {self._saver.last_ckpt}; --resume continues it')
        raise RunStopped(signal)


def _saver(runner: Any) -> AtomicCheckpointHook:
    for hook in runner.hooks:
        if isinstance(hook, AtomicCheckpointHook):
            return hook
    own = AtomicCheckpointHook(interval=-1, by_epoch=False)  # the config has another hook, or none
    own.before_train(runner)
    return own


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()
