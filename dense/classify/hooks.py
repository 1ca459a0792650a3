"""Hooks of classification."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class TrainSizeHook(Hook):
    """Change the size of the training images from a given epoch on.

    Args:
        epoch: First epoch with the new size; 0 is the first of the run.
        size: Side of the square crops in pixels.
    """

    def __init__(self, epoch: int, size: int) -> None:
        self.epoch = epoch
        self.size = size
        self._is_done = False

    def before_train_epoch(self, runner: Any) -> None:
        """Change the size, also in the processes that load the data."""
        if self._is_done or runner.epoch < self.epoch:
            return
        loader = runner.train_dataloader
        loader.dataset.set_size(self.size)
        # Persistent workers hold a copy of the data set with the old size; the loader starts new ones.
        loader._iterator = None
        self._is_done = True
        runner.logger.info(f'training on {self.size} x {self.size} pixels from epoch {runner.epoch + 1} on')
