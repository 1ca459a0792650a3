"""Helpers that families of ops share: precision, determinism, vector-Jacobian products, checks of regions."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from backbones.fast.recording import is_recorded


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


def check_rois(rois: Tensor, num_images: int, spatial_scale: float) -> None:
    """Check regions whose first column chooses the image; kernels would read memory that is not the map's.

    Values are checked on a CPU only: elsewhere the process would have to wait for them, and a graph holds none.

    Args:
        rois: Index of the image and corners ``(n, x1, y1, x2, y2)``, shape (R, 5).
        num_images: N.
        spatial_scale: Size of the feature map over that of the image.

    Raises:
        ValueError: The shape is another one, an index is not in [0, N), or a corner is NaN, infinite or as good as.
    """
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            f'rois have shape {tuple(rois.shape)}, allowed is (R, 5)\n'
            'give rows (index of the image, x1, y1, x2, y2), for example by mmdet.structures.bbox.bbox2roi'
        )
    if rois.device.type != 'cpu' or is_recorded() or type(rois.data) is not Tensor or not len(rois):
        return
    least, most = (values.tolist() for values in rois.data.aminmax(dim=0))  # NaN if there is one
    if not (least[0] >= 0 and most[0] < num_images):
        raise ValueError(
            f'rois name images from {least[0]:g} to {most[0]:g}, allowed are indices from 0, of {num_images} images\n'
            'give rows (index of the image in the batch, x1, y1, x2, y2)'
        )
    # Sizes on the map, which are differences, must not overflow either.
    limit = torch.finfo(working_dtype(rois)).max / 2 / max(spatial_scale, 1.0)
    if not all(-limit < low and high < limit for low, high in zip(least[1:], most[1:], strict=True)):
        raise ValueError(
            f'rois have corners from {least[1:]} to {most[1:]}, allowed are finite corners\n'
            'leave such boxes out; if a model predicted them, its training has diverged: lower the learning rate'
        )


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
