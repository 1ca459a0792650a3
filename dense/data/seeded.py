"""Chooses the samples of a training step and their random augmentation by the seed and the step alone.

Legend: W processes; B samples per batch and process; W * B samples make a step, the *global batch*. The global batches
are those that one process with batches of W * B would form, whatever W is. Process r gets every W-th sample of each,
from the r-th on: place p of its batch is place p * W + r of the global batch, as MMEngine's samplers deal samples out.
"""

from collections.abc import Iterator, Sized
from typing import Any, NamedTuple
from unittest.mock import patch

from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler

from dense.data.wrapper import DatasetView
from dense.randomness import SAMPLE, own_randomness


class Draw(NamedTuple):
    """A sample to load.

    Attributes:
        sample: Index of the sample in the data set.
        number: Its place in the order in which the whole run draws samples; seeds its augmentation.
    """

    sample: int
    number: int


@DATA_SAMPLERS.register_module()
def whole_order(dataset: Sized, sampler: dict[str, Any], seed: int) -> Any:
    """Build a sampler that yields the samples of all processes, as it would in a run of one process.

    Args:
        dataset: What it draws from.
        sampler: Its config.
        seed: Of the run; the same in every process.
    """
    # MMEngine's samplers, and mmdet's, ask for their rank once, when they are built.
    with patch('mmengine.dist.utils.is_distributed', return_value=False):
        return DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))


@DATA_SAMPLERS.register_module()
class SeededBatchSampler:
    """Yields this process's share of the global batches, with the number of each draw, starting at any step of the run.

    A last global batch of an epoch that is not full is filled up to a multiple of W with its own first samples.

    Args:
        sampler: Order of the samples of all processes (:func:`whole_order`); shuffled by its own seed and epoch.
        batch_size: B.
        inner: Config of another batch sampler that groups the samples; if None, plain groups in the sampler's order.
        drop_last: Without ``inner``: leave out a last global batch that is not full.
        start_epoch: Epoch in which the run continues; 0 in a run that counts only iterations.
        start_iter: Steps already made.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        inner: dict | None = None,
        drop_last: bool = False,
        start_epoch: int = 0,
        start_iter: int = 0,
    ) -> None:
        self._rank, self._world_size = get_dist_info()
        self.sampler = sampler
        self.batch_size = batch_size
        self.global_batch_size = batch_size * self._world_size
        self.inner = (
            BatchSampler(sampler, self.global_batch_size, drop_last)
            if inner is None
            else DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=self.global_batch_size))
        )
        self.epoch = start_epoch
        self.step = start_iter
        self._to_skip = max(0, start_iter - start_epoch * len(self.inner))

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the batches of one epoch, or batches without end if the sampler never ends."""
        while True:
            is_empty = True
            for batch in self._epoch_from_step():
                is_empty = False
                yield batch
            self.epoch += 1
            # A resumed run may have to skip whole epochs; a data set without any batch must not loop forever.
            if not is_empty or self._to_skip == 0:
                return

    def _epoch_from_step(self) -> Iterator[list[Draw]]:
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.epoch)
        for indices in self.inner:
            if self._to_skip > 0:
                self._to_skip -= 1
                continue
            first = self.step * self.global_batch_size
            self.step += 1
            yield [Draw(index, first + place) for place, index in self._own_share(indices)]

    def _own_share(self, indices: list[int]) -> list[tuple[int, int]]:
        """Return places in the global batch and the samples there."""
        filled = [indices[i % len(indices)] for i in range(len(indices) + -len(indices) % self._world_size)]
        return list(enumerate(filled))[self._rank :: self._world_size]


@DATASETS.register_module()
class SeededDataset(DatasetView):
    """A data set whose random augmentation depends on the seed and the draw only, not on the process that loads it.

    Args:
        dataset: The data set's config, or the data set.
        seed: Seed of the run.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        super().__init__(dataset)
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Any:
        with own_randomness((self.seed, SAMPLE, draw.number)):
            return self.dataset[draw.sample]
