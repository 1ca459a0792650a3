"""Hooks of every run: repeatable steps, data that exists."""

from collections.abc import Iterator
from typing import Any

from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.data.check_samples import check_samples
from dense.errors import UserError
from dense.randomness import end_step, start_step

MIN_UNREADABLE = 10


@HOOKS.register_module()
class SeededStepHook(Hook):
    """Make a training step's random numbers depend on the seed and the step's number only.

    Args:
        seed: Seed of the run.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train(self, runner: Any) -> None:
        """Let a resumed loop that counts iterations start at once: its data already begins at the right step."""
        loop = runner.train_loop
        if loop.iter > 0 and hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _PlacedBatches(loop.dataloader_iterator, loop.iter)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators, in all processes alike."""
        start_step(self.seed, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """End the step."""
        end_step()


class _PlacedBatches:
    """Batches that already start at the right step, for a resumed loop that would skip the earlier ones.

    Args:
        batches: The loop's own iterator.
        count: Number of steps that the loop skips: by ``skip_iter`` if its iterator has it, or else by drawing as
            many batches, which are never used and may be ``None``.
    """

    def __init__(self, batches: Iterator[Any], count: int) -> None:
        self.batches = batches
        self.to_pass = 0 if hasattr(batches, 'skip_iter') else count

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.to_pass > 0:
            self.to_pass -= 1
            return None
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: there is nothing to skip."""


@HOOKS.register_module()
class CheckedDataHook(Hook):
    """Check before the first step that the data sets' files exist, and count unreadable ones during training.

    Args:
        max_unreadable: Number of unreadable files that training tolerates; by default 1 percent, but at least 10.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_unreadable: int | None = None) -> None:
        self.max_unreadable = max_unreadable
        self._unreadable: set[str] = set()

    def before_run(self, runner: Any) -> None:
        """Check that every file exists, that sizes are right, and that there is something to train on.

        Raises:
            UserError: Files are missing, or the data set cannot be used.
        """
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            if hasattr(loop, 'dataloader'):
                check_samples(loop.dataloader.dataset, is_training=loop is runner._train_loop)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Name the files that could not be read.

        Raises:
            UserError: There are too many of them.
        """
        dataset = runner.train_dataloader.dataset
        for path in dataset.take_reports():
            if path not in self._unreadable:
                self._unreadable.add(path)
                notice(f'cannot read {path}: skipped (unreadable files so far: {len(self._unreadable)})')
        limit = max(MIN_UNREADABLE, len(dataset) // 100) if self.max_unreadable is None else self.max_unreadable
        if len(self._unreadable) > limit:
            raise UserError(
                f'{len(self._unreadable)} files of the data set cannot be read (at most {limit} are skipped), '
                f'for example {min(self._unreadable)}',
                'copy the data set again, or raise max_unreadable in the config',
            )

    def after_train(self, runner: Any) -> None:
        """Say how many files were skipped."""
        if self._unreadable:
            notice(f'unreadable files skipped: {len(self._unreadable)}; they are named above and in the log')


@HOOKS.register_module()
class SameBuffersHook(Hook):
    """Let all processes validate with the main process's buffers, which are those that a checkpoint holds.

    Each process of a distributed run keeps running statistics of its own images, unless its batch norms are
    synchronised. Without this hook each would validate its share of the data with its own statistics, and the score
    would belong to no model that is ever saved.
    """

    priority = 'LOWEST'  # after moving averages have taken the model's place

    def before_val_epoch(self, runner: Any) -> None:
        """Copy every buffer of the model from the main process to the others."""
        if get_world_size() > 1:
            for buffer in runner.model.buffers():
                broadcast(buffer)
