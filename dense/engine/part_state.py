"""Stores what parts of a model keep besides parameters and buffers: histories, thresholds, the size of the next batch.

PyTorch's ``state_dict`` leaves such plain Python state out. A resumed run would start without it.
"""

import io
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import torch
from mmengine.dist import gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from dense.console.output import notice
from dense.engine.plain_values import NotPlainError, decode, encode, fingerprint, put, size_of
from dense.errors import UserError

KEY = 'part_state'
MOST_BYTES = 64 << 20  # of the state of one process; what is larger is no history but a cache
MAX_NAMED = 4
# Attributes of PyTorch's own, and packages whose objects are no parts of a model.
BOOKKEEPING = {*vars(nn.Module()), '_compiled_call_impl', '_is_init', '_params_init_info'}
NO_PARTS = (
    'backbones.fast', 'builtins', 'collections', 'cv2', 'enum', 'functools', 'logging', 'mmengine', 'numpy', 'pathlib',
    'random', 're', 'rich', 'threading', 'torch', 'tqdm', 'types', 'weakref',
)  # fmt: skip
COMPARED = (torch.device, torch.dtype, torch.layout, PurePath, Enum, types.MethodType)


@dataclass(frozen=True)
class _Slot:
    """A place that holds a value: an attribute of an object, or an item of a container."""

    path: str
    owner: Any
    name: Any
    value: Any

    @property
    def place(self) -> tuple[str, Any]:
        return self.path, self.name

    @property
    def text(self) -> str:
        return f'{self.path}.{self.name}'.lstrip('.')

    def set(self, value: Any) -> None:
        if isinstance(self.owner, dict | list):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


class PartState:
    """What the parts of a model kept at some time; tells what changed since.

    Args:
        model: The model, without the wrapper of a distributed run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._owners: dict[str, Any] = {}
        self._first: dict[tuple[str, Any], tuple[Any, str]] = {}
        for slot in self._slots(None):
            self._first[slot.place] = (slot.value, _print_of(slot.value))
        self._known = {path: type(owner) for path, owner in self._owners.items()}

    def changes(self) -> tuple[dict[str, dict[Any, Any]], list[str]]:
        """Return the plain data that changed, and the names of what changed and cannot be stored.

        The data: path of an object -> attribute -> ``(value, whether the object that holds it is still the same)``.
        """
        found: dict[str, dict[Any, Any]] = {}
        lost, room = [], MOST_BYTES
        for slot in self._slots(self._known):
            first, print_then = self._first.get(slot.place, (_Slot, ''))
            if _is_same(slot.value, first, print_then):
                continue
            try:
                value = encode(slot.value)
                size = size_of(value)
            except NotPlainError:
                size = MOST_BYTES + 1
            if size > room or isinstance(slot.owner, tuple):
                lost.append(slot.text)
                continue
            room -= size
            found.setdefault(slot.path, {})[slot.name] = (value, slot.value is first)
        return found, lost

    def restore(self, state: Mapping[str, Mapping[Any, Any]]) -> None:
        """Set what changed in the stopped run.

        Args:
            state: From :meth:`changes`.

        Raises:
            UserError: It is not the state of this model.
        """
        device = next((parameter.device for parameter in self.model.parameters()), 'cpu')
        for path, names in state.items():
            for name, entry in names.items():
                if path not in self._owners or not _is_entry(entry):
                    raise _foreign(f'{path}.{name}')
                owner = self._owners[path]
                slot = _Slot(path, owner, name, _value_of(owner, name))
                if not _may_change(slot):
                    raise _foreign(slot.text)
                try:
                    new = decode(entry[0], device)
                    if not (entry[1] and put(slot.value, new)):
                        slot.set(new)
                except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                    raise _foreign(slot.text) from error

    def _slots(self, known: Mapping[str, type] | None) -> Iterator[_Slot]:
        """Yield every value that is kept; after the first time, look only into objects that were there then."""
        inside = set(self.model.modules())
        saved = {id(tensor) for tensor in (*self.model.parameters(), *_persistent_buffers(self.model))}
        self._owners, seen = {}, set()
        waiting: list[tuple[str, Any]] = [('', self.model)]
        while waiting:
            path, owner = waiting.pop()
            if id(owner) in seen:
                continue
            seen.add(id(owner))
            self._owners[path] = owner
            for name, value in _items(owner, inside):
                slot = _Slot(path, owner, name, value)
                if _is_view(value, saved):
                    continue
                if not _is_part(value):
                    yield slot
                elif known is None or known.get(slot.text) is type(value) or id(value) in seen:
                    waiting.append((slot.text, value))
                else:
                    yield slot


@HOOKS.register_module()
class PartStateHook(Hook):
    """Store and restore what parts of the model keep besides parameters and buffers."""

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._states: Any = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the state; one for all processes if it is the same in each."""
        states = getattr(runner, 'part_states', None)
        if 'optimizer' in checkpoint and states and any(states):
            is_same = len({fingerprint(state) for state in states}) == 1
            checkpoint[KEY] = states[:1] if is_same else states

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the state until the model is complete."""
        self._states = checkpoint.pop(KEY, None) if isinstance(checkpoint, dict) and runner._resume else None

    def before_train(self, runner: Any) -> None:
        """Remember what the parts keep, then restore what the stopped run had changed.

        Raises:
            UserError: The checkpoint holds the state of another model.
        """
        states, self._states = self._states, None
        runner.part_state = PartState(getattr(runner.model, 'module', runner.model))
        if states is None:
            return
        if not isinstance(states, list) or not states or not all(map(_is_state, states)):
            raise _foreign(KEY)
        if 1 < len(states) != get_world_size():
            names = [f'{path}.{name}'.lstrip('.') for path, kept in states[0].items() for name in kept]
            notice(
                f'WARNING: each of the {len(states)} processes of the stopped run kept its own {_listed(names)}; the '
                f'{get_world_size()} of this run go on with that of the first'
            )
            states = states[:1]
        runner.part_state.restore(states[get_rank() if len(states) > 1 else 0])


def gather_part_states(runner: Any) -> list[Any] | None:
    """Return what changed in the parts of the model since the start, for each process. Every process must call it.

    What cannot be stored is named once.

    Args:
        runner: With its model.

    Returns:
        One state for each process in the main one; None in others, and outside training.
    """
    kept = getattr(runner, 'part_state', None)
    if kept is None:
        return None
    state, lost = kept.changes()
    said = runner.__dict__.setdefault('parts_said', set())
    new = [name for name in lost if name not in said]
    said.update(new)
    if new:
        notice(
            f'WARNING: {_listed(new)} changed in training and cannot be stored in a checkpoint: a resumed run goes on '
            'without, and may differ'
        )
    # As the bytes of a file: torch.distributed fails to unpickle some tensors where double is the default type.
    gathered = gather_object(_packed(state))
    return None if gathered is None else [_unpacked(packed) for packed in gathered]


def _packed(state: Any) -> bytes:
    with io.BytesIO() as file:
        torch.save(state, file)
        return file.getvalue()


def _unpacked(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=True)


def _items(owner: Any, inside: set[nn.Module]) -> list[tuple[Any, Any]]:
    if isinstance(owner, dict):
        return [(key, item) for key, item in owner.items() if isinstance(key, str | int)]
    if isinstance(owner, list | tuple):
        return list(enumerate(owner))
    found = [(name, value) for name, value in vars(owner).items() if name not in BOOKKEEPING]
    if not isinstance(owner, nn.Module):
        return found
    buffers: dict[str, Any] = {name: owner._buffers.get(name) for name in owner._non_persistent_buffers_set}
    # A module that the model hides from its state dict, such as a teacher, is part of no checkpoint.
    hidden = {} if owner in inside else {**owner._parameters, **owner._buffers}
    children = [(name, child) for name, child in owner._modules.items() if child is not None]
    return [*found, *{**buffers, **hidden}.items(), *children]


def _persistent_buffers(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _is_view(value: Any, saved: set[int]) -> bool:
    """Tell whether a value only shows tensors that every checkpoint holds, as the weights that an RNN lists."""
    if isinstance(value, dict | list | tuple):
        items = value.values() if isinstance(value, dict) else value
        return any(isinstance(item, torch.Tensor) and _is_view(item, saved) for item in items)
    return isinstance(value, torch.Tensor) and bool({id(value), id(value._base)} & saved)


def _is_part(value: Any) -> bool:
    """Tell whether to look into a value, instead of taking it as a whole."""
    if isinstance(value, nn.Module):
        return not type(value).__module__.startswith('backbones.fast')
    if isinstance(value, dict | list | tuple):
        return any(map(_is_held, value.values() if isinstance(value, dict) else value))
    return _is_object(value)


def _is_held(item: Any) -> bool:
    return _is_part(item) if isinstance(item, nn.Module | dict | list | tuple) else _is_object(item)


def _is_object(value: Any) -> bool:
    if not hasattr(value, '__dict__') or isinstance(value, type | types.FunctionType):
        return False
    kinds = [f'{kind.__module__}.' for kind in type(value).__mro__ if kind is not object]
    return not any(kind.startswith(f'{name}.') for kind in kinds for name in NO_PARTS)


def _print_of(value: Any) -> str:
    try:
        return fingerprint(encode(value))
    except NotPlainError:
        return ''


def _is_same(value: Any, first: Any, print_then: str) -> bool:
    if isinstance(value, COMPARED):
        return bool(value == first)
    print_now = _print_of(value)
    return value is first if not print_now else print_now == print_then


def _value_of(owner: Any, name: Any) -> Any:
    if isinstance(owner, dict):
        return owner.get(name)
    if isinstance(owner, list):
        return owner[name] if isinstance(name, int) and 0 <= name < len(owner) else None
    return getattr(owner, name, None) if isinstance(name, str) else None


def _may_change(slot: _Slot) -> bool:
    """Tell whether a file may set a value: only plain data may be replaced, never a method or a module."""
    if isinstance(slot.owner, tuple) or (isinstance(slot.owner, nn.Module) and slot.name in BOOKKEEPING):
        return False
    return slot.value is None or bool(_print_of(slot.value))


def _is_state(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(names, dict) for names in state.values())


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2


def _foreign(name: str) -> UserError:
    return UserError(
        f'the checkpoint holds a state of {name.lstrip(".")} that this model cannot take',
        'use the config that the checkpoint was made with, or start from its weights with --load-from',
    )


def _listed(names: list[str]) -> str:
    return ', '.join(names[:MAX_NAMED]) + (f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else '')
