"""Unpickling a checkpoint without trusting what it asks for.

``torch.load(weights_only=True)`` builds tensors and plain containers. MMEngine's checkpoints also hold a history of
logged values: ``HistoryBuffer`` objects with NumPy arrays and references to their own methods. Allowing the real
classes would let a hostile pickle reach into memory: ``numpy.ndarray`` interprets raw bytes as pointers to objects,
``numpy.dtype`` accepts any flags, and ``HistoryBuffer`` writes to a dict that all of its instances share. So a stand-in
that only stores data replaces each class, and :func:`read_pickle` makes the real objects from the stand-ins.
"""

import functools
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import _weights_only_unpickler as torch_unpickler

STATISTICS = frozenset({'mean', 'max', 'min', 'current'})


def read_pickle(path: Path, map_location: Any, *, mmap: bool = False) -> Any:
    """Read a file that ``torch.save`` wrote. Threads may call this, and ``torch.load``, at the same time.

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        mmap: Likewise; tensors are read only when they are used.

    Raises:
        UnpicklingError: The pickle asks for something that is not allowed.
        Exception: A damaged file can raise anything.
    """
    token = _uses_stand_ins.set(True)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    finally:
        _uses_stand_ins.reset(token)
    return _resolve(content, {})


class _DType:
    """Stands in for ``numpy.dtype``: numbers and truth values only."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        self.value = np.dtype(str(name))
        if self.value.kind not in 'biuf':
            raise UnpicklingError(f'numpy data of type {self.value}')

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ('<', '>'):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _array(shape, dtype, content, order='F' if is_fortran else 'C')


class _History:
    """Stands in for ``HistoryBuffer``."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.log, self.counts = state['_log_history'], state['_count_history']
        self.max_length = int(state['max_length'])

    @functools.cached_property
    def value(self) -> HistoryBuffer:
        return HistoryBuffer(self.log.value, self.counts.value, self.max_length)


def _array(shape: tuple[int, ...], dtype: _DType, content: bytes, order: Any = 'C') -> np.ndarray:
    array: np.ndarray = np.ndarray(shape, dtype.value, bytes(content), order=order)
    if array.nbytes != len(content):
        raise UnpicklingError(f'a numpy array of {array.nbytes} bytes with {len(content)} bytes of content')
    return array.copy(order)


def _scalar(dtype: _DType, content: bytes) -> Any:
    return _array((), dtype, content)[()]


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _statistic(owner: Any, name: str) -> str:
    # Stands in for `getattr`, which would allow arbitrary code on arbitrary objects. A new HistoryBuffer has its
    # methods anyway, so nothing uses the result.
    if owner is _History and name in STATISTICS:
        return name
    raise UnpicklingError(f'attribute {name!r} of {owner!r}')


_STAND_INS: dict[str, Any] = {
    f'{HistoryBuffer.__module__}.HistoryBuffer': _History,
    'builtins.getattr': _statistic,
    'numpy.dtype': _DType,
    'numpy.ndarray': _Array,
    # NumPy 1 names the module `numpy.core`, NumPy 2 `numpy._core`.
    **{f'numpy.{core}.multiarray._reconstruct': _empty_array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}
# Torch allows these, but a file of a few bytes could claim any amount of memory with them: ``bytearray(1 << 40)``.
_GREEDY = frozenset({'builtins.bytearray'})
_uses_stand_ins: ContextVar[bool] = ContextVar('uses_stand_ins', default=False)


def _look_up_stand_ins() -> None:
    """Make torch's unpickler find the stand-ins inside :func:`read_pickle`, and nowhere else.

    ``torch.serialization.safe_globals`` changes one list for the whole process: two threads that use it remove each
    other's entries, and meanwhile every other ``torch.load`` accepts them. Here the list depends on the caller.
    """
    registered, built_in = torch_unpickler._get_user_allowed_globals, torch_unpickler._get_allowed_globals

    @functools.wraps(registered)
    def user_allowed_globals() -> dict[str, Any]:
        return _STAND_INS if _uses_stand_ins.get() else registered()

    @functools.cache
    def harmless_globals() -> dict[str, Any]:
        return {name: value for name, value in built_in().items() if name not in _GREEDY}

    @functools.wraps(built_in)
    def allowed_globals() -> dict[str, Any]:
        return harmless_globals() if _uses_stand_ins.get() else built_in()

    torch_unpickler._get_user_allowed_globals = user_allowed_globals
    torch_unpickler._get_allowed_globals = allowed_globals


_look_up_stand_ins()


def _resolve(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """Replace stand-ins by the real objects, in place except for tuples.

    Args:
        value: The unpickled object.
        seen: ``id`` -> container and its replacement: a container may occur many times, or contain itself.
    """
    if isinstance(value, _DType | _Array | _History):
        return value.value
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, dict | list):
        seen[id(value)] = value, value
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            resolved = _resolve(item, seen)
            if resolved is not item:
                value[key] = resolved
    elif type(value) is tuple:
        resolved = tuple(_resolve(item, seen) for item in value)
        is_same = all(new is old for new, old in zip(resolved, value, strict=True))
        seen[id(value)] = value, value if is_same else resolved
        return seen[id(value)][1]
    return value
