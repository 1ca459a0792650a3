"""Content-aware reassembly of features: upsampling with a separate kernel for every output pixel.

Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, 2019, equation 3 (https://arxiv.org/abs/1905.02188). mmcv has
two kernels, a plain and a fast one, which compute the same result.

Legend of shapes: N images, C channels in G groups, H and W of the feature map, K x K taps, S the factor of the size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dense.compat.ops.common import vector_jacobian, without_autocast, working_dtype

NUMBERS_AT_ONCE = 1 << 24  # of all windows; they hold K * K times the map's numbers, so rows are taken in turn


def carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Upsample; replaces ``mmcv.ops.carafe`` and ``mmcv.ops.carafe_naive``.

    Each output pixel is the sum of the K x K pixels around the one that it comes from, weighted by its own kernel.
    Pixels beyond the border are zero.

    Args:
        features: Shape (N, C, H, W).
        masks: Kernels in reading order, shape (N, G * K * K, H * S, W * S).
        kernel_size: K, odd.
        group_size: G, groups of channels, each with its own kernels.
        scale_factor: S, at least 1.

    Returns:
        Shape (N, C, H * S, W * S), dtype of ``features``. The arithmetic is in float32 or better.

    Raises:
        ValueError: K is even, S is below 1, G does not divide C, or the masks do not fit.
    """
    _check(features, masks, kernel_size, group_size, scale_factor)
    dtype = working_dtype(features, masks)
    with without_autocast(features):
        output = _Reassemble.apply(features.to(dtype), masks.to(dtype), kernel_size, group_size, scale_factor)
    return output.to(features.dtype)


class _Reassemble(torch.autograd.Function):
    """Builds the windows of a few rows at a time, and again in the backward pass, so none are held in between."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
        ctx.save_for_backward(features, masks)
        ctx.sizes = kernel, groups, scale
        num, channels, height, width = features.shape
        kernels = _kernels_last(masks, groups, scale)
        padded = _padded(features, kernel, groups)
        output = features.new_empty(num, groups, height, width, scale**2, channels // groups)
        for rows in _rows(features, kernel):
            output[:, :, rows] = kernels[:, :, rows] @ _windows(padded, rows, kernel)
        # N, G, H, W, S, S, C/G -> N, G, C/G, H, S, W, S
        pixels = output.unflatten(4, (scale, scale)).permute(0, 1, 6, 2, 4, 3, 5)
        return pixels.reshape(num, channels, height * scale, width * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        features, masks = ctx.saved_tensors
        kernel, groups, scale = ctx.sizes
        kernels, grads = _kernels_last(masks, groups, scale), _kernels_last(grad_output, groups, scale)
        padded = _padded(features, kernel, groups)
        grad_padded, grad_kernels = torch.zeros_like(padded), torch.empty_like(kernels)
        for rows in _rows(features, kernel):
            grad_kernels[:, :, rows] = grads[:, :, rows] @ _windows(padded, rows, kernel).transpose(-1, -2)
            grad_windows = kernels[:, :, rows].transpose(-1, -2) @ grads[:, :, rows]
            for tap, place in enumerate(_places(padded, rows, kernel)):
                grad_padded[place] += grad_windows[..., tap, :]
        return _cropped(grad_padded, kernel), _kernels_first(grad_kernels, scale), None, None, None


def _rows(features: Tensor, kernel: int) -> Iterator[slice]:
    """Cut the map into bands of rows whose windows have at most :data:`NUMBERS_AT_ONCE` numbers."""
    num, channels, height, width = features.shape
    step = max(1, NUMBERS_AT_ONCE // max(1, num * channels * width * kernel**2))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _padded(features: Tensor, kernel: int, groups: int) -> Tensor:
    """Return the map with zeros around it and its channels last; (N, G, H + K - 1, W + K - 1, C/G)."""
    padded = F.pad(features, [kernel // 2] * 4)
    return padded.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2).contiguous()


def _cropped(padded: Tensor, kernel: int) -> Tensor:
    """Undo :func:`_padded`."""
    border = kernel // 2
    height, width = padded.shape[2] - 2 * border, padded.shape[3] - 2 * border
    inner = padded.narrow(2, border, height).narrow(3, border, width)
    return inner.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous()


def _places(padded: Tensor, rows: slice, kernel: int) -> Iterator[tuple[slice, ...]]:
    """Yield for each tap, in reading order, the part of the padded map that it sees from these rows."""
    width = padded.shape[3] - kernel + 1
    for i in range(kernel):
        for j in range(kernel):
            yield slice(None), slice(None), slice(rows.start + i, rows.stop + i), slice(j, j + width)


def _windows(padded: Tensor, rows: slice, kernel: int) -> Tensor:
    """Return what the taps see from each pixel of the rows; (N, G, rows, W, K * K, C/G)."""
    band = padded[:, :, rows.start : rows.stop + kernel - 1]
    taps_last = band.unfold(2, kernel, 1).unfold(3, kernel, 1)  # a view: N, G, rows, W, C/G, K, K
    return taps_last.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)


def _kernels_last(maps: Tensor, groups: int, scale: int) -> Tensor:
    """Gather the S x S output pixels of an input pixel; (N, G * M, H * S, W * S) to (N, G, H, W, S * S, M)."""
    cells = maps.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))
    return cells.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5).contiguous()


def _kernels_first(cells: Tensor, scale: int) -> Tensor:
    """Undo :func:`_kernels_last`."""
    return cells.unflatten(4, (scale, scale)).permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _check(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> None:
    if kernel < 1 or kernel % 2 == 0 or scale < 1:
        raise ValueError(
            f'kernel_size is {kernel}, scale_factor is {scale}, allowed are odd sizes and factors of at least 1\n'
            'fix the two numbers'
        )
    num, channels, height, width = features.shape
    if groups < 1 or channels % groups:
        raise ValueError(f'features have {channels} channels, group_size is {groups}\nchoose a divisor of the channels')
    expected = num, groups * kernel**2, height * scale, width * scale
    if masks.shape != expected:
        raise ValueError(
            f'masks have shape {tuple(masks.shape)}, but features of shape {tuple(features.shape)}, kernel_size '
            f'{kernel}, group_size {groups} and scale_factor {scale} allow {expected}\n'
            'fix the layer that makes the masks, or these numbers'
        )


# The calling convention of mmcv's compiled extension. The fast kernel gets buffers for maps with the channels last, of
# which only the one passed from its forward to its backward function is needed.


def _naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    output.copy_(carafe(features, masks, kernel_size, group_size, scale_factor))


def _naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    def reassemble(x: Tensor, m: Tensor) -> Tensor:
        return carafe(x, m, kernel_size, group_size, scale_factor)

    grads = vector_jacobian(reassemble, [features, masks], grad_output)
    grad_input += grads[0]
    grad_masks += grads[1]


def _forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    num, channels, height, width = features.shape
    rfeatures.view(num, height, width, channels).copy_(features.permute(0, 2, 3, 1))
    _naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def _backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    num, channels, height, width = rfeatures.shape
    features = rfeatures.view(num, height, width, channels).permute(0, 3, 1, 2)
    _naive_backward(grad_output, features, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)


KERNELS: dict[str, Callable] = {
    'carafe_naive_forward': _naive_forward,
    'carafe_naive_backward': _naive_backward,
    'carafe_forward': _forward,
    'carafe_backward': _backward,
}
