"""A hook that stops fused models from being trained: :func:`refuse_gradients`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from backbones.fast.recording import is_recorded


def refuse_gradients(module: nn.Module, inputs: Any, named: Any = None) -> None:
    """Raise an error if a module of a fused model would need a gradient; a forward pre-hook.

    Whether an operation passes gradients on depends on the sizes of the maps, so the result would be unreliable.

    Args:
        module: Any.
        inputs: Its positional arguments; tensors may be in lists, dicts and the like.
        named: Its keyword arguments, likewise.

    Raises:
        ValueError: Gradients are enabled, and an input or a parameter requires one.
    """
    if not torch.is_grad_enabled() or is_recorded():
        return
    cause = None
    if any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves((inputs, named))):
        cause = 'its input requires a gradient'
    elif any(parameter.requires_grad for parameter in module.parameters()):
        cause = 'a parameter requires a gradient'
    if cause is not None:
        raise ValueError(
            f'A fused model has no gradients, but {cause}.\n'
            'Train the model that was fused, or call the fused one under torch.no_grad().'
        )
