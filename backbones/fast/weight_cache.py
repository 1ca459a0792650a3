"""A cache for a tensor computed from a weight, which can never be out of date."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class WeightCache:
    """Keeps a result computed from a weight, with a copy of the weight, and recomputes it when the weight differs.

    PyTorch counts the changes of a tensor, but misses those by fused optimizers and by writes through ``.data``. So
    each use compares the contents, bit by bit. This reads the weight twice, about 1 % of the time of the convolutions
    that use it (docs/benchmarks.md).

    The cache is not part of a state dict, and copies and pickles of a layer start without it.

    Args:
        compute: Function of the weight, at the top level of its module.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._kept: tuple[Tensor, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """Return the tensor for the weight's current values.

        Args:
            weight: FP32, on the CPU.
        """
        weight = weight.detach()
        kept = self._kept  # read once: another thread may replace it
        if kept is None or not _is_same(kept[0], weight):
            copy = weight.clone()
            kept = self._kept = copy, self._compute(copy)
        return kept[1]

    def drop(self) -> None:
        """Free the memory; the next use computes the tensor again."""
        self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightCache, (self._compute,)


def _is_same(a: Tensor, b: Tensor) -> bool:
    # As integers, NaN equals itself, and 0 differs from -0.
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))
