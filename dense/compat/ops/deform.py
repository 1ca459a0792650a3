"""Deformable convolution, versions 1 and 2, by torchvision's kernel, with mmcv's gradient at the map's border.

Dai et al., Deformable Convolutional Networks, 2017, section 2.1 (https://arxiv.org/abs/1703.06211); Zhu et al.,
Deformable ConvNets v2, 2018, equation 1 (https://arxiv.org/abs/1811.11168), which weighs each sample by a mask.

Legend of shapes: N images, C input and O output channels, KH x KW kernel, G groups of deformation (channels that share
offsets), H' and W' of the output. The offsets' channels are G x KH x KW pairs (dy, dx).

A sampling point at -1 or less, or at the map's height or width or more, is outside: it samples 0 and moving it
changes nothing. Every point in the padding of a freshly initialised layer is exactly there; torchvision takes
the slope of the inner side instead.
"""

import torch
import torchvision
from torch import Tensor

from dense.compat.ops.common import needs_determinism, pair, without_autocast, working_dtype

Size = int | tuple[int, int]
Pair = tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Convolve at displaced sampling points; replaces ``mmcv.ops.deform_conv2d``.

    Args:
        input: Shape (N, C, H, W).
        offset: Displacements in pixels, shape (N, 2 * G * KH * KW, H', W').
        weight: Shape (O, C / groups, KH, KW).
        stride: Of the sampling grid, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the kernel's elements, in pixels.
        groups: Groups of channels convolved apart.
        deform_groups: G.
        bias: Always False: mmcv adds the bias outside.
        im2col_step: How many images mmcv's kernel takes at once. A larger batch must be a multiple of it, as in mmcv;
            otherwise it has no effect here.

    Returns:
        Shape (N, O, H', W'), dtype of ``offset``, which sets the precision under autocast, as in mmcv.

    Raises:
        AssertionError: N is more than ``im2col_step`` and not a multiple of it.
        ValueError: The channels do not fit the groups, the offset does not fit the kernel or the output, the input is
            too small, or ``bias`` is True.
    """
    if bias:
        raise ValueError('bias is True, allowed is False\nadd the bias to the result instead')
    geometry = pair(stride), pair(padding), pair(dilation)
    size = _output_size(input, weight, *geometry)
    _check_channels(input, offset, None, weight, groups, deform_groups)
    _check_step(len(input), im2col_step)
    if offset.shape[2:] != size:
        raise ValueError(
            f'offset is {offset.shape[2]} x {offset.shape[3]} pixels, but the output is {size[0]} x {size[1]}\n'
            'give one offset per pixel of the output'
        )
    return _convolve(input, offset, None, weight, None, *geometry)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve at displaced and weighted sampling points; replaces ``mmcv.ops.modulated_deform_conv2d``.

    Args:
        input: Shape (N, C, H, W).
        offset: Displacements in pixels, shape (N, 2 * G * KH * KW, H', W'). A larger map is read as mmcv reads it:
            the first numbers of each image in reading order, as if they had the output's shape. The necks of Dynamic
            Head rely on this.
        mask: Weights of the samples, shape (N, G * KH * KW, H', W'), or larger and read likewise.
        weight: Shape (O, C / groups, KH, KW).
        bias: Shape (O,).
        stride: Of the sampling grid, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the kernel's elements, in pixels.
        groups: Groups of channels convolved apart.
        deform_groups: G.

    Returns:
        Shape (N, O, H', W'), dtype of ``offset``, which sets the precision under autocast, as in mmcv.

    Raises:
        ValueError: The channels do not fit the groups, the offset or mask does not fit the kernel or is smaller than
            the output, or the input is too small.
    """
    geometry = pair(stride), pair(padding), pair(dilation)
    size = _output_size(input, weight, *geometry)
    _check_channels(input, offset, mask, weight, groups, deform_groups)
    offset, mask = _in_shape('offset', offset, size), _in_shape('mask', mask, size)
    return _convolve(input, offset, mask, weight, bias, *geometry)


def _convolve(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    dtype = working_dtype(offset)
    convolve = _convolve_in_fixed_order if needs_determinism(input) else torchvision.ops.deform_conv2d
    with without_autocast(input):
        shifts = offset.to(dtype)
        if torch.is_grad_enabled() and shifts.requires_grad:
            shifts = _hold_border(shifts, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
        output = convolve(
            input.to(dtype),
            shifts,
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            stride=stride,
            padding=padding,
            dilation=dilation,
            mask=None if mask is None else mask.to(dtype),
        )
    return output.to(offset.dtype)


def _hold_border(offset: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Return the offset without the gradient of the points at -1, which lie outside the map."""
    shifts = offset.unflatten(1, (-1, *kernel, 2))
    y, x = _points(shifts, stride, padding, dilation)
    outside = ((y == -1) | (x == -1)).unsqueeze(4)
    return torch.where(outside, shifts.detach(), shifts).flatten(1, 4)


def _points(shifts: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the sampling points, (N, G, KH, KW, H', W'), of shifts (N, G, KH, KW, 2, H', W')."""
    kernel_h, kernel_w, _, out_h, out_w = shifts.shape[2:]
    rows = _grid(out_h, kernel_h, stride[0], padding[0], dilation[0], shifts)[:, None, :, None]
    columns = _grid(out_w, kernel_w, stride[1], padding[1], dilation[1], shifts)[None, :, None, :]
    return rows + shifts[:, :, :, :, 0], columns + shifts[:, :, :, :, 1]


def _convolve_in_fixed_order(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    """Convolve like torchvision's kernel, but by indexing, whose backward pass adds in a fixed order."""
    num_out, per_group, kernel_h, kernel_w = weight.shape
    num, channels = input.shape[:2]
    out_h, out_w = offset.shape[2:]
    shifts = offset.unflatten(1, (-1, kernel_h, kernel_w, 2))
    grouped = input.unflatten(1, (shifts.shape[1], -1))  # N, G, C/G, H, W
    samples = _sample(grouped, *_points(shifts, stride, padding, dilation))
    if mask is not None:
        samples = samples * mask.unflatten(1, (-1, 1, kernel_h, kernel_w))
    groups = channels // per_group
    samples = samples.reshape(num, groups, per_group, kernel_h, kernel_w, out_h, out_w)
    kernels = weight.view(groups, num_out // groups, per_group, kernel_h, kernel_w)
    output = torch.einsum('ngcabhw,gocab->ngohw', samples, kernels).reshape(num, num_out, out_h, out_w)
    return output if bias is None else output + bias[:, None, None]


def _grid(num_out: int, num_kernel: int, stride: int, padding: int, dilation: int, like: Tensor) -> Tensor:
    """Return where each kernel element lies for each output pixel, along one axis; (num_kernel, num_out)."""
    start = torch.arange(num_out, device=like.device, dtype=like.dtype) * stride - padding
    return start + torch.arange(num_kernel, device=like.device, dtype=like.dtype)[:, None] * dilation


def _sample(grouped: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate maps (N, G, C, H, W) that continue with zeros at points (N, G, ...); (N, G, C, ...)."""
    height, width = grouped.shape[3:]
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    ones = [1] * (y.dim() - 2)
    image = torch.arange(grouped.shape[0], device=y.device).view(-1, 1, 1, *ones)
    group = torch.arange(grouped.shape[1], device=y.device).view(1, -1, 1, *ones)
    channel = torch.arange(grouped.shape[2], device=y.device).view(1, 1, -1, *ones)
    samples = grouped.new_zeros(())
    for row, share_y in ((top, 1 - down), (top + 1, down)):
        for column, share_x in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at_y, at_x = row.clamp(0, height - 1).long()[:, :, None], column.clamp(0, width - 1).long()[:, :, None]
            samples = samples + grouped[image, group, channel, at_y, at_x] * (share_y * share_x * inside)[:, :, None]
    return samples


def _output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Return H' and W'."""
    if input.dim() != 4:
        raise ValueError(f'input has {input.dim()} dimensions, allowed are 4 (N, C, H, W)\nadd the missing dimension')
    covered = [dilation[axis] * (weight.shape[2 + axis] - 1) + 1 for axis in (0, 1)]
    height, width = ((input.shape[2 + axis] + 2 * padding[axis] - covered[axis]) // stride[axis] + 1 for axis in (0, 1))
    if height < 1 or width < 1:
        raise ValueError(
            f'convolution input is too small: {input.shape[2]} x {input.shape[3]} pixels with padding {padding} for a '
            f'kernel that covers {covered[0]} x {covered[1]}\ngive a larger input or more padding'
        )
    return height, width


def _in_shape(name: str, tensor: Tensor, size: Pair) -> Tensor:
    """Return the first numbers of each image, in reading order, in the shape of the output."""
    if tensor.shape[2:] == size:
        return tensor
    channels, needed = tensor.shape[1], tensor.shape[1] * size[0] * size[1]
    numbers = tensor.flatten(1)
    if numbers.shape[1] < needed:
        raise ValueError(
            f'{name} is {tensor.shape[2]} x {tensor.shape[3]} pixels, but the output is {size[0]} x {size[1]}\n'
            f'give one {name} per pixel of the output'
        )
    return numbers[:, :needed].unflatten(1, (channels, *size))


def _check_step(num: int, im2col_step: int) -> None:
    """Refuse a batch that mmcv refuses, with the same type of error, because code and tests may expect it."""
    step = min(im2col_step, num)
    if step and num % step:
        raise AssertionError(
            f'{num} images, im2col_step {im2col_step}: batch size must be divisible by im2col_step\n'
            'choose a step that divides the batch, or one of at least the batch'
        )


def _check_channels(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, groups: int, deform_groups: int
) -> None:
    """Check the declared groups against the shapes; torchvision infers them from the shapes alone."""
    points = deform_groups * weight.shape[2] * weight.shape[3]
    expected = {'input': (input, weight.shape[1] * groups), 'offset': (offset, 2 * points)}
    if mask is not None:
        expected['mask'] = mask, points
    for name, (tensor, channels) in expected.items():
        if tensor.shape[1] != channels:
            raise ValueError(
                f'{name} has {tensor.shape[1]} channels, but a weight of shape {tuple(weight.shape)}, groups {groups} '
                f'and deform_groups {deform_groups} allow {channels}\nfix the groups or the layer that makes {name}'
            )
