"""Turns values that modules keep into plain data and back: numbers, text, tensors, and containers of these."""

import hashlib
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

KIND = 'plain kind'  # key of a dict that stands for something else
MOST_LEVELS = 8  # of containers in containers
SIMPLE = (type(None), bool, int, float, complex, str)
ITEMS: dict[str, Callable[[Any], Any]] = {'size': torch.Size, 'set': set, 'frozenset': frozenset}
# Random generators: how their state is read, and set.
GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (lambda one: one.get_state(), lambda one, state: one.set_state(state.cpu())),
    random.Random: (lambda one: one.getstate(), lambda one, state: one.setstate(state)),
    np.random.RandomState: (lambda one: one.get_state(legacy=False), lambda one, state: one.set_state(state)),
    np.random.Generator: (
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, 'state', state),
    ),
}


class NotPlainError(TypeError):
    """A value that is not plain data."""


def encode(value: Any, levels: int = MOST_LEVELS) -> Any:
    """Return a value as data that a checkpoint can hold. Tensors on the host share their memory with the value.

    Args:
        value: Anything.
        levels: How many containers may lie in each other.

    Raises:
        NotPlainError: The value cannot be held.
    """
    if type(value) in SIMPLE:
        return value
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value)
    if type(value) in GENERATORS:
        return {KIND: 'generator', 'state': encode(GENERATORS[type(value)][0](value))}
    if levels == 0:
        raise NotPlainError('containers in containers')
    if type(value) in (dict, OrderedDict) and KIND not in value:
        return type(value)((_key(key), encode(item, levels - 1)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)([encode(item, levels - 1) for item in value])
    if type(value) is deque:
        return {KIND: 'deque', 'items': [encode(item, levels - 1) for item in value], 'maxlen': value.maxlen}
    for kind, make in ITEMS.items():
        if type(value) is make:
            return {KIND: kind, 'items': _ordered([encode(item, levels - 1) for item in value], kind)}
    raise NotPlainError(type(value).__name__)


def decode(value: Any, device: torch.device | str) -> Any:
    """Undo :func:`encode`, but for generators, which stay dicts.

    Args:
        value: What it returned.
        device: Of tensors that were not in the host's memory.
    """
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, list | tuple):
        return type(value)([decode(item, device) for item in value])
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind is None:
        return type(value)((key, decode(item, device)) for key, item in value.items())
    if kind == 'tensor':
        return value['value'].to(device)
    if kind == 'array':
        array = value['value'].cpu().numpy()
        return array[()] if value['is_scalar'] else array
    if kind == 'generator':
        return {KIND: kind, 'state': decode(value['state'], device)}
    items = [decode(item, device) for item in value['items']]
    return deque(items, value['maxlen']) if kind == 'deque' else ITEMS[kind](items)


def put(current: Any, new: Any) -> bool:
    """Give an object the content of another one; return whether that was possible.

    Args:
        current: Changed in place, so that whoever else holds it sees the change.
        new: From :func:`decode`.
    """
    if type(current) in GENERATORS and isinstance(new, dict):
        GENERATORS[type(current)][1](current, new['state'])
    elif type(current) is not type(new) and not isinstance(current, torch.nn.Parameter):
        return False
    elif isinstance(current, torch.Tensor):
        if current.shape != new.shape or current.dtype != new.dtype:
            return False
        with torch.no_grad():
            current.copy_(new)
    elif isinstance(current, list):
        current[:] = new
    elif isinstance(current, dict | set):
        current.clear()
        current.update(new)
    elif isinstance(current, deque):
        current.clear()
        current.extend(new)
    else:
        return False
    return True


def fingerprint(value: Any) -> str:
    """Return a text that is the same for equal values only.

    Args:
        value: From :func:`encode`.
    """
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else b''
        return f'{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}'
    if isinstance(value, dict):
        return f'{{{", ".join(f"{key!r}: {fingerprint(item)}" for key, item in value.items())}}}'
    if isinstance(value, list | tuple):
        return f'{type(value).__name__}({", ".join(map(fingerprint, value))})'
    return repr(value)


def size_of(value: Any) -> int:
    """Return the bytes of a value's tensors, and some for each other item.

    Args:
        value: From :func:`encode`.
    """
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 8 + sum(map(size_of, items))


def _encode_tensor(value: torch.Tensor) -> Any:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise NotPlainError(f'{value.layout} tensor')
    plain = value.detach().resolve_conj().resolve_neg()
    return plain if plain.device.type == 'cpu' else {KIND: 'tensor', 'value': plain.cpu()}


def _encode_array(value: Any) -> Any:
    try:
        tensor = torch.from_numpy(np.array(value))
    except TypeError as error:
        raise NotPlainError(f'array of {value.dtype}') from error
    return {KIND: 'array', 'value': tensor, 'is_scalar': isinstance(value, np.generic)}


def _key(key: Any) -> Any:
    if type(key) in SIMPLE or (type(key) is tuple and all(type(part) in SIMPLE for part in key)):
        return key
    raise NotPlainError(f'key {type(key).__name__}')


def _ordered(items: list[Any], kind: str) -> list[Any]:
    return sorted(items, key=fingerprint) if 'set' in kind else items
