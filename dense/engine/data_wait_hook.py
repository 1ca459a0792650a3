"""Tell the user when training waits for its data while the GPU is idle."""

import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.cpu.cores import usable_cores


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Say once per run that loading data takes a large share of each step, and what to do about it.

    The hook measures the time itself: MMEngine's ``data_time`` also includes validation and saving before a step.

    Args:
        warm_up: Steps that do not count: the loading processes start, and kernels are chosen.
        window: Steps that are averaged; a loader with several processes delivers in bursts.
        limit: Share of the time, 0 to 1, above which loading is too slow.
    """

    priority = 'LOWEST'  # runs last: what other hooks do after a step is not waiting for data

    def __init__(self, warm_up: int = 50, window: int = 50, limit: float = 0.2) -> None:
        self.warm_up = warm_up
        self.window = window
        self.limit = limit
        self._since = 0.0  # when the wait for data, and then the step, began
        self._steps = 0
        self._loading = self._working = 0.0  # seconds in the current window
        self._has_spoken = False

    def before_train(self, runner: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def before_train_epoch(self, runner: Any) -> None:
        """Ignore what happened between two epochs, such as saving a checkpoint."""
        self._since = time.perf_counter()

    def after_val(self, runner: Any) -> None:
        """Ignore the time that validation took."""
        self._since = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Count the wait for data."""
        self._loading += self._seconds()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count the step; at the end of a window, say so if loading was too slow."""
        self._working += self._seconds()
        self._steps += 1
        looked_at = self._steps - self.warm_up
        if looked_at > 0 and looked_at % self.window == 0 and not self._has_spoken:
            self._judge(runner.train_dataloader.num_workers)
        if looked_at % self.window == 0:
            self._loading = self._working = 0.0

    def _seconds(self) -> float:
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed

    def _judge(self, num_workers: int) -> None:
        step = (self._loading + self._working) / self.window
        share = self._loading / self.window / step
        if share > self.limit:
            self._has_spoken = True
            notice(
                f'loading data takes {share:.0%} of a step ({self._loading / self.window:.2f} of {step:.2f} s) '
                f'with num_workers={num_workers}: {advise_num_workers(num_workers, usable_cores())}'
            )


def advise_num_workers(num_workers: int, cores: int) -> str:
    """Return what to do about slow loading.

    Args:
        num_workers: Current number of processes that load data.
        cores: Number of processor cores; more processes than cores do not help.
    """
    more = min(max(2, 2 * num_workers), cores)
    if more > num_workers:
        return f'start with --cfg-options train_dataloader.num_workers={more}'
    return (
        f'this machine has {cores} cores, so put the data on a faster disk or store the images at the size of '
        f'training; where loading waits for the disk, --cfg-options train_dataloader.num_workers={2 * num_workers}'
    )
