"""Batches for updates that gather the gradients of several batches."""

from collections.abc import Iterator, Sized
from typing import Any

from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from dense.errors import UserError


@DATA_SAMPLERS.register_module()
class WholeUpdates:
    """Full batches, as many as make whole updates; what is left of an epoch is left out.

    No gradient is carried from one epoch into the next, so a run that goes on from the end of an epoch repeats the
    uninterrupted one.

    Args:
        sampler: Order of the samples.
        batch_size: Samples per batch and process.
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
                f'an update takes {accumulative_counts} x {batch_size} images, and the training data has {number}'
                ' for each process',
                'reduce train_dataloader.batch_size or optim_wrapper.accumulative_counts and that of the batch sampler',
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # Drawn to its end, so that a sampler that counts its rounds counts this one.
        for number, batch in enumerate(self.batches):
            if number < self.num_batches:
                yield batch
