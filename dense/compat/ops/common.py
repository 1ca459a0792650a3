"""Helpers that all families of ops share: precision of the arithmetic, determinism, vector-Jacobian products."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context that disables autocast on the tensor's device."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor has it, else float32.

    Coordinates in half precision are off by whole pixels (bfloat16 steps by 8 above 1024), and several kernels of
    torchvision have no half precision on the CPU, so the ops compute in at least float32.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def needs_determinism(tensor: Tensor) -> bool:
    """Tell whether kernels that add atomically must be avoided: on a GPU, under deterministic algorithms."""
    return tensor.device.type != 'cpu' and torch.are_deterministic_algorithms_enabled()


def pair(size: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a size that may be one number for both."""
    if isinstance(size, int):
        return size, size
    height, width = size if len(size) == 2 else (size[0], size[0])
    return int(height), int(width)


def vector_jacobian(function: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor) -> list[Tensor]:
    """Differentiate ``function(*inputs)`` with respect to each input, weighted by ``grad_output``.

    It serves the backward functions of ``mmcv._ext``, which are called with autograd switched off.

    Returns:
        One gradient per input, of the input's shape; zeros where the output does not depend on it.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
        weights = grad_output.to(output.dtype)
        return list(torch.autograd.grad(output, leaves, weights, materialize_grads=True))
