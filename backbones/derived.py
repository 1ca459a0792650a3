"""Tensors that are computed from weights, for the layers that infer with another form of them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Derived:
    """What is computed from a weight: made at the first use, kept, made again when the weight has changed.

    It is no part of a state dict, and copies and pickles of a layer start without it.

    Args:
        compute: Function of the weight, at the top level of its module.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        self._compute = compute
        self._value: Tensor | None = None
        self._made_from: tuple[int, int] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The tensor for the weight as it is now."""
        version = 0 if weight.is_inference() else weight._version
        if self._value is None or self._made_from != (weight.data_ptr(), version):
            self._value = self._compute(weight.detach())
            self._made_from = (weight.data_ptr(), version)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, (self._compute,)
