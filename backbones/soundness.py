"""Finds what in a state dict is no weight: numbers that are not finite, tensors of another kind."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbones.serialization import one_line

MOST_NAMED = 4


def describe_faults(state: Mapping[Any, Any], own: Mapping[str, Tensor] | None = None) -> str:
    """Say in words which entries cannot be weights; empty if all can.

    Args:
        state: Name -> tensor, as in a file.
        own: The model's tensors: those with the same names must be floats where these are. Other
            entries are only looked at for what no weight may be.
    """
    wanted = own or {}
    return _describe(
        {name: _fault_of_kind(value) or _fault_of_numbers(value, wanted.get(name)) for name, value in state.items()}
    )


def describe_kinds(state: Mapping[Any, Any]) -> str:
    """Say in words which entries are no ordinary tensors, without looking at their numbers.

    Args:
        state: As in :func:`describe_faults`.
    """
    return _describe({name: _fault_of_kind(value) for name, value in state.items()})


def _describe(faults: Mapping[Any, str]) -> str:
    found: dict[str, list[str]] = {}
    for name, fault in faults.items():
        if fault:
            found.setdefault(fault, []).append(one_line(name))
    return '; '.join(f'{fault}: {_first(names)}' for fault, names in found.items())


def _fault_of_kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f'{type(value).__name__} in place of a tensor'
    if value.is_quantized:
        return 'quantised tensors'
    if value.layout is not torch.strided:
        return 'sparse tensors'
    if value.is_meta:
        return 'tensors without data'
    return 'complex numbers' if value.is_complex() else ''


def _fault_of_numbers(value: Tensor, own: Tensor | None) -> str:
    if not value.is_floating_point():
        wants_float = own is not None and own.is_floating_point()
        return f'{_name(value)} in place of {_name(own)}' if own is not None and wants_float else ''
    numbers = value if value.element_size() > 1 else value.float()  # no operation of theirs takes eight bits
    # Floats in place of counters are let through: averages of checkpoints have them.
    return '' if bool(numbers.isfinite().all()) else 'NaN or infinite weights'


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix('torch.')


def _first(names: list[str]) -> str:
    more = f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''
    return f'{", ".join(names[:MOST_NAMED])}{more}'
