"""A checkpoint with all that MMEngine saves, hostile pickles, and how a file is read or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from backbones.serialization import CheckpointError, load_file


def checkpoint() -> dict[str, Any]:
    """What MMEngine saves: weights, an optimizer's state, and a history of logged values."""
    generator = torch.Generator().manual_seed(0)
    weights = {f'layer{i}.weight': torch.randn(3, 4, generator=generator) for i in range(4)}
    history = HistoryBuffer([1.5, 2.5, 4.5], [1, 1, 2])
    loop = dict(
        iter=3,
        best=np.float64(0.5),
        seen=np.int64(7),
        flags=np.array([True, False]),
        order=np.asfortranarray([[1, 2], [3, 4]]),
    )
    return dict(
        meta=dict(epoch=1, iter=3, classes=('a', 'b')),
        state_dict=weights,
        optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1, betas=(0.9, 0.999))]),
        message_hub=dict(log_scalars={'train/loss': history}, runtime_info=loop, resumed_keys={}),
        nested=[(np.arange(3), {'x': (np.float32(2.0),)})],
    )


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, HistoryBuffer):
        return equal(vars(a), vars(b)) and a.mean() == b.mean() and a.statistics('max') == b.statistics('max')
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


class Call:
    def __init__(self, function: Callable, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced


def read_or_refuse(path: Path) -> Any:
    """The content, or None for a file that is refused properly; nothing else may come out."""
    try:
        return load_file(path)
    except CheckpointError as error:
        cause, remedy = str(error).split('\n')
        assert cause and remedy and str(error).replace('\n', '').isprintable()
        return None
