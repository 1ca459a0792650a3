"""Makes checkpoints plain data, and checks that they fit the model before anything is loaded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.errors import UserError

PLAIN_HISTORY = 'plain_history'
MAX_NAMED = 4


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


def from_plain(value: Any) -> Any:
    """Undo :func:`to_plain` for log histories."""
    if isinstance(value, dict):
        if PLAIN_HISTORY in value:
            return HistoryBuffer(value[PLAIN_HISTORY].tolist(), value['counts'].tolist())
        return {key: from_plain(item) for key, item in value.items()}
    return value


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
            checkpoint['state_dict'] = model.convert_checkpoint(checkpoint)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = checkpoint.get('state_dict', checkpoint)
        got = {name.removeprefix('module.'): tuple(getattr(tensor, 'shape', ())) for name, tensor in state.items()}
        fitting = [name for name, shape in wanted.items() if got.get(name) == shape]
        others = sorted(set(wanted) ^ set(got)) + [name for name in wanted if name in got and got[name] != wanted[name]]
        if not fitting or (others and not self.fine_tune):
            raise UserError(
                f'the checkpoint does not fit the model: {len(fitting)} of {len(wanted)} tensors match; '
                f'others are {", ".join(others[:MAX_NAMED])}{" ..." if len(others) > MAX_NAMED else ""}',
                'use the config that the checkpoint was made with, or start from its weights with --load-from',
            )
        check_finite({name: tensor for name, tensor in state.items() if name.removeprefix('module.') in set(fitting)})
        self.loaded = len(fitting), len(wanted)
        for name in [name for name in state if name.removeprefix('module.') in set(others) & set(wanted)]:
            del state[name]
        if others:
            new = sorted(set(wanted) - set(fitting))
            notice(f'loaded {len(fitting)} of {len(wanted)} tensors; new: {", ".join(new[:MAX_NAMED])}')


def check_finite(state: Mapping[str, Any]) -> None:
    """Check that a model's tensors are numbers.

    Args:
        state: Name -> tensor, as ``state_dict()`` returns them.

    Raises:
        UserError: Some are NaN or infinite.
    """
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        more = f' and {len(broken) - MAX_NAMED} more' if len(broken) > MAX_NAMED else ''
        raise UserError(
            f'the checkpoint holds NaN or infinite weights: {", ".join(broken[:MAX_NAMED])}{more}',
            'give an earlier checkpoint; training diverged before this one was saved',
        )
