"""A tensor that is computed from a weight and kept, and that can never be out of date."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class WeightCache:
    """What is computed from a weight, kept together with a copy of the weight, and computed again when that differs.

    PyTorch counts the changes of a tensor, but not all of them: fused optimizers, and whatever writes through
    ``.data``, leave the count as it is. So the contents are compared, bit by bit, at each use. That reads the weight
    twice, about 1 % of the time of the convolutions that it is used for (docs/benchmarks.md).

    What is kept is no part of a state dict, and copies and pickles of a layer start without it.

    Args:
        compute: Function of the weight, at the top level of its module.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._kept: tuple[Tensor, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The tensor for the weight as it is now.

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
        """Free the memory; the next use computes anew."""
        self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightCache, (self._compute,)


def _is_same(a: Tensor, b: Tensor) -> bool:
    # As integers: NaN equals itself then, and 0 is not -0.
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))
