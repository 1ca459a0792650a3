"""Hooks of every run: repeatable steps, finite losses, data that exists."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.data.check import check_files
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
class FiniteLossHook(Hook):
    """Stop at the first loss that is not finite, before a checkpoint with it is written."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the losses of the step.

        Raises:
            UserError: A loss is NaN or infinite; the message names the step, the losses and the images.
        """
        losses = {name: value for name, value in (outputs or {}).items() if 'loss' in name}
        tensors = [torch.as_tensor(value).detach().float().mean() for value in losses.values()]
        if not tensors or bool(torch.stack(tensors).isfinite().all()):
            return
        values = ', '.join(f'{name} {float(value):.4g}' for name, value in zip(losses, tensors, strict=True))
        last = runner.message_hub.runtime_info.get('last_ckpt')
        kept = f'the last good checkpoint is {last}; ' if last else ''
        raise UserError(
            f'the loss of step {runner.iter + 1} is not finite: {values}; images {", ".join(image_names(data_batch))}',
            f'{kept}lower the learning rate, clip gradients (optim_wrapper.clip_grad) or look at these images',
        )


def image_names(data_batch: Any) -> list[str]:
    """Return the file names of a batch's images, as far as they are known."""
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    names = [getattr(sample, 'img_path', None) for sample in samples]
    return [Path(name).name for name in names if name] or ['unknown']


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
        """Check that every file exists.

        Raises:
            UserError: Files are missing.
        """
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            if hasattr(loop, 'dataloader'):
                check_files(loop.dataloader.dataset)

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
