"""Loads whole published checkpoints, backbone and head, into a classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from backbones.soundness import describe_faults
from backbones.weights import ENTRIES, WEIGHTS, read_weights
from dense.errors import UserError

MAX_NAMED = 4


class Classifier(Protocol):
    """What this module needs of a classifier.

    Attributes:
        backbone: A :class:`backbones.base.DenseBackbone`.
        head: With ``convert_state_dict``, as the heads in :mod:`dense.classify.heads`.
    """

    backbone: Any
    head: Any

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any: ...


def own_state_dict(model: Classifier, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in a checkpoint under the names of a classifier's parameters; pure.

    Args:
        model: The classifier; its backbone and its head know the layouts of their papers.
        content: A classifier's own checkpoint, or a published one in the authors' layout or timm's.
    """
    state = next((content[entry] for entry in ENTRIES if isinstance(content.get(entry), Mapping)), content)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if any(key.startswith('backbone.') for key in state):
        return state
    backbone = model.backbone.convert_state_dict(state)
    head = model.head.convert_state_dict(state)
    return {
        **{f'backbone.{key}': value for key, value in backbone.items() if not model.backbone.leaves_out(key)},
        **{f'head.{key}': value for key, value in head.items()},
    }


def load_classifier(model: Classifier, source: str | Path) -> str:
    """Load a whole checkpoint: all of its tensors or none.

    Args:
        model: Changed in place, only after everything has been checked.
        source: A name in :data:`backbones.weights.WEIGHTS`, a URL or a file.

    Returns:
        What was loaded, in one line.

    Raises:
        UserError: The tensors do not fit.
        backbones.serialization.CheckpointError: The source cannot be read.
    """
    record = WEIGHTS.get(str(source))
    if record is not None and record.family != type(model.backbone).__name__:
        raise UserError(
            f'{source!r} holds weights of {record.family}, but the backbone is {type(model.backbone).__name__}',
            'choose weights of this family, or another backbone and head',
        )
    state, own = own_state_dict(model, read_weights(source)), model.state_dict()
    fitting = [key for key in own if key in state and state[key].shape == own[key].shape]
    others = sorted((set(own) | set(state)) - set(fitting))
    if others:
        raise UserError(
            f'{str(source)!r} does not fit the classifier: {len(fitting)} of {len(own)} tensors match; others are '
            f'{", ".join(others[:MAX_NAMED])}{" ..." if len(others) > MAX_NAMED else ""}; nothing was loaded',
            'use the arch and num_classes of the checkpoint, or load the backbone only: '
            'model.init_cfg=None model.backbone.init_cfg=...',
        )
    faults = describe_faults(state, own)
    if faults:
        raise UserError(f'{str(source)!r} holds {faults}; nothing was loaded', 'give another file')
    model.load_state_dict(state, strict=True)
    return f'loaded {len(fitting)} of {len(own)} tensors from {source}'
