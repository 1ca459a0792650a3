"""Makes checkpoints plain data, and checks that they fit the model before anything is loaded."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from backbones.soundness import describe_faults, describe_kinds
from backbones.weights import ENTRIES
from dense.console.output import notice
from dense.errors import UserError

PLAIN_HISTORY = 'plain_history'
MAX_NAMED = 4
MOST_LOGGED = 1_000_000  # values that a history keeps, as HistoryBuffer does by default


def to_plain(value: Any) -> Any:
    """Return a value in which log histories and NumPy data are tensors, numbers and lists."""
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return {PLAIN_HISTORY: torch.tensor(history, dtype=torch.float64), 'counts': torch.tensor(counts)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_plain(item) for item in value]
        # A reader that runs no code knows only these classes; a NamedTuple loses its names and keeps its order.
        return tuple(items) if isinstance(value, tuple) else items
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def from_plain(hub: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`to_plain` for the log histories of a message hub.

    Args:
        hub: ``message_hub`` of a checkpoint.

    Raises:
        UserError: A history is none.
    """
    logged = hub.get('log_scalars', {})
    if not isinstance(logged, Mapping):
        raise _no_history('log_scalars')
    return {**hub, 'log_scalars': OrderedDict((name, _history(name, value)) for name, value in logged.items())}


def _history(name: str, value: Any) -> HistoryBuffer:
    if isinstance(value, HistoryBuffer):  # MMEngine's own checkpoints
        return value
    tensors = [value.get(PLAIN_HISTORY), value.get('counts')] if isinstance(value, dict) else [None, None]
    # An empty list becomes an empty float tensor.
    if not _is_row(tensors[0], torch.float64) or not _is_row(tensors[1], torch.int64, torch.float32):
        raise _no_history(name)
    history, counts = (tensor.tolist() for tensor in tensors if tensor is not None)
    if len(history) != len(counts):
        raise _no_history(name)
    return HistoryBuffer(history, counts)


def _is_row(value: Any, *kinds: torch.dtype) -> bool:
    """Tell whether a value is a row of numbers that the file really holds: a stride of zero claims any length."""
    if not isinstance(value, torch.Tensor) or value.dtype not in kinds or describe_kinds({'': value}):
        return False
    return value.ndim == 1 and value.is_contiguous() and len(value) <= MOST_LOGGED


def _no_history(name: str) -> UserError:
    return UserError(
        f'the checkpoint is damaged: its log history {name!s:.80} is not one',
        'resume from another checkpoint, or start a new run from its weights with --load-from',
    )


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse a checkpoint that does not fit the model or is not finite, before any of it is loaded.

    Args:
        fine_tune: The weights are only a starting point: parameters that the checkpoint lacks, or has in another shape,
            keep their initial values and are counted in a notice. Otherwise every tensor must match.
    """

    priority = 'VERY_HIGH'

    def __init__(self, fine_tune: bool = False) -> None:
        self.fine_tune = fine_tune
        self.loaded: tuple[int, int] | None = None  # tensors that were loaded, of how many

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare names and shapes, and look at every value.

        Raises:
            UserError: Tensors are missing, have another shape, or hold NaN or infinity.
        """
        model = getattr(runner.model, 'module', runner.model)
        if hasattr(model, 'convert_checkpoint'):  # a classifier also accepts its authors' files
            check_sound(next((checkpoint[key] for key in ENTRIES if key in checkpoint), checkpoint), kinds_only=True)
            checkpoint['state_dict'] = model.convert_checkpoint(checkpoint)
        own = model.state_dict()
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        state = checkpoint.get('state_dict', checkpoint)
        got = {name.removeprefix('module.'): tuple(getattr(tensor, 'shape', ())) for name, tensor in state.items()}
        fitting = [name for name, shape in wanted.items() if got.get(name) == shape]
        others = sorted(set(wanted) ^ set(got)) + [name for name in wanted if name in got and got[name] != wanted[name]]
        if not fitting or (others and not self.fine_tune):
            raise UserError(
                f'the checkpoint does not fit the model: {len(fitting)} of {len(wanted)} tensors match; '
                f'others are {", ".join(others[:MAX_NAMED])}{" ..." if len(others) > MAX_NAMED else ""}',
                'give weights of this model; --load-from takes those of a similar one, if some tensors match'
                if self.fine_tune
                else 'use the config that the checkpoint was made with, or start from its weights with --load-from',
            )
        named = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
        check_sound({name: named[name] for name in fitting}, own)
        self.loaded = len(fitting), len(wanted)
        for name in [name for name in state if name.removeprefix('module.') in set(others) & set(wanted)]:
            del state[name]
        if others:
            new = sorted(set(wanted) - set(fitting))
            notice(f'loaded {len(fitting)} of {len(wanted)} tensors; new: {", ".join(new[:MAX_NAMED])}')


def check_sound(
    state: Mapping[str, Any], own: Mapping[str, torch.Tensor] | None = None, *, kinds_only: bool = False
) -> None:
    """Check that a model's tensors are ordinary ones, of finite numbers.

    Args:
        state: Name -> tensor, as ``state_dict()`` returns them.
        own: The model's tensors, which must hold the same kinds of numbers.
        kinds_only: Do not look at the numbers.

    Raises:
        UserError: Some are not.
    """
    faults = describe_kinds(state) if kinds_only else describe_faults(state, own)
    if faults:
        raise UserError(
            f'the checkpoint holds {faults}',
            'give an earlier checkpoint; training diverged before this one was saved'
            if faults.startswith('NaN')
            else 'give another checkpoint, or save the weights again with torch.save(model.state_dict(), FILE)',
        )
