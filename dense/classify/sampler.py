"""Batches for training with gradient accumulation."""

from collections.abc import Iterator, Sized
from typing import Any

from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from dense.errors import UserError


@DATA_SAMPLERS.register_module()
class WholeUpdates:
    """Yields full batches, as many as make whole updates; the rest of an epoch is dropped.

    No gradient is carried from one epoch into the next, so a run resumed at the end of an epoch equals the
    uninterrupted one.

    Args:
        sampler: Order of the samples.
        batch_size: Samples per batch; in a run, of all processes together.
        accumulative_counts: Batches per update, as in ``optim_wrapper``.

    Raises:
        UserError: There are too few samples for one update.
    """

    def __init__(self, sampler: Any, batch_size: int, accumulative_counts: int = 1) -> None:
        self.batches = BatchSampler(sampler, batch_size, drop_last=True)
        self.num_batches = len(self.batches) // accumulative_counts * accumulative_counts
        if self.num_batches == 0:
            number = len(sampler) if isinstance(sampler, Sized) else 0
            raise UserError(
                f'an update takes {accumulative_counts} x {batch_size} images, but the training data has {number}',
                'reduce train_dataloader.batch_size or optim_wrapper.accumulative_counts and that of the batch sampler',
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # Read to the end, because some samplers count their epochs there.
        for number, batch in enumerate(self.batches):
            if number < self.num_batches:
                yield batch
