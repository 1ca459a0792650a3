"""Deformable convolution, versions 1 and 2, by torchvision's kernel.

Dai et al., Deformable Convolutional Networks, 2017, section 2.1 (https://arxiv.org/abs/1703.06211); Zhu et al.,
Deformable ConvNets v2, 2018, equation 1 (https://arxiv.org/abs/1811.11168), which weighs each sample by a mask.

Legend of shapes: N images, C input and O output channels, KH x KW kernel, G groups of deformation (channels that share
offsets), H' and W' of the output. The offsets' channels are G x KH x KW pairs (dy, dx).
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from dense.compat.ops.common import needs_determinism, pair, vector_jacobian, without_autocast, working_dtype

Size = int | tuple[int, int]


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
    """Convolve at displaced sampling points; stands in for ``mmcv.ops.deform_conv2d``.

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
        im2col_step: How many images mmcv's kernel takes at once; without effect here, and N need not be a multiple.

    Returns:
        Shape (N, O, H', W'), dtype of ``offset``, which tells autocast's precision as in mmcv.

    Raises:
        ValueError: The channels do not fit the groups, the offset does not fit the kernel, or ``bias`` is True.
    """
    if bias:
        raise ValueError('bias is True, allowed is False\nadd the bias to the result instead')
    return _convolve(input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups)


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
    """Convolve at displaced and weighted sampling points; stands in for ``mmcv.ops.modulated_deform_conv2d``.

    Args:
        input: Shape (N, C, H, W).
        offset: Displacements in pixels, shape (N, 2 * G * KH * KW, H', W').
        mask: Weights of the samples, shape (N, G * KH * KW, H', W').
        weight: Shape (O, C / groups, KH, KW).
        bias: Shape (O,).
        stride: Of the sampling grid, in pixels.
        padding: Zeros around the input, in pixels.
        dilation: Distance of the kernel's elements, in pixels.
        groups: Groups of channels convolved apart.
        deform_groups: G.

    Returns:
        Shape (N, O, H', W'), dtype of ``offset``, which tells autocast's precision as in mmcv.

    Raises:
        ValueError: The channels do not fit the groups, or the offset or mask does not fit the kernel.
    """
    return _convolve(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)


def _convolve(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
    deform_groups: int,
) -> Tensor:
    _check_channels(input, offset, mask, weight, groups, deform_groups)
    dtype = working_dtype(offset)
    convolve = _convolve_in_fixed_order if needs_determinism(input) else torchvision.ops.deform_conv2d
    with without_autocast(input):
        output = convolve(
            input.to(dtype),
            offset.to(dtype),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            stride=pair(stride),
            padding=pair(padding),
            dilation=pair(dilation),
            mask=None if mask is None else mask.to(dtype),
        )
    return output.to(offset.dtype)


def _convolve_in_fixed_order(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """Convolve as torchvision's kernel, by indexing, whose backward pass adds in a fixed order."""
    num_out, per_group, kernel_h, kernel_w = weight.shape
    num, channels = input.shape[:2]
    out_h, out_w = offset.shape[2:]
    shifts = offset.view(num, -1, kernel_h, kernel_w, 2, out_h, out_w)  # N, G, KH, KW, 2, H', W'
    rows = _grid(out_h, kernel_h, stride[0], padding[0], dilation[0], offset)[None, None, :, None, :, None]
    columns = _grid(out_w, kernel_w, stride[1], padding[1], dilation[1], offset)[None, None, None, :, None, :]
    grouped = input.unflatten(1, (shifts.shape[1], -1))  # N, G, C/G, H, W
    samples = _sample(grouped, rows + shifts[:, :, :, :, 0], columns + shifts[:, :, :, :, 1])
    if mask is not None:
        samples = samples * mask.view(num, -1, 1, kernel_h, kernel_w, out_h, out_w)
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
    ones = [1] * (y.dim() - 2)
    image = torch.arange(grouped.shape[0], device=y.device).view(-1, 1, 1, *ones)
    group = torch.arange(grouped.shape[1], device=y.device).view(1, -1, 1, *ones)
    channel = torch.arange(grouped.shape[2], device=y.device).view(1, 1, -1, *ones)
    samples = grouped.new_zeros(())
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        share = (1 - (y - row).abs()) * (1 - (x - column).abs())
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at_y, at_x = row.clamp(0, height - 1).long()[:, :, None], column.clamp(0, width - 1).long()[:, :, None]
        samples = samples + grouped[image, group, channel, at_y, at_x] * (share * inside)[:, :, None]
    return samples


def _check_channels(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, groups: int, deform_groups: int
) -> None:
    """Compare the declared groups with the shapes, from which torchvision alone would infer them."""
    if input.dim() != 4:
        raise ValueError(f'input has {input.dim()} dimensions, allowed are 4 (N, C, H, W)\nadd the missing dimension')
    points = deform_groups * weight.shape[2] * weight.shape[3]
    expected = {'input': (input, weight.shape[1] * groups), 'offset': (offset, 2 * points)}
    if mask is not None:
        expected['mask'] = mask, points
    for name, (tensor, channels) in expected.items():
        if tensor.shape[1] != channels:
            raise ValueError(
                f'{name} has {tensor.shape[1]} channels, but a weight of shape {tuple(weight.shape)}, groups {groups} '
                f'and deform_groups {deform_groups} allow {channels}\nmend the groups or the layer that makes {name}'
            )


# The calling convention of mmcv's compiled extension. It passes buffers (columns, ones) that are not needed here.


def _deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    output.copy_(deform_conv2d(input, offset, weight, *geometry))


def _deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    grads = vector_jacobian(lambda x, o: deform_conv2d(x, o, weight, *geometry), [input, offset], grad_output)
    grad_input += grads[0]
    grad_offset += grads[1]


def _deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group
    leaf = grad_weight.detach().to(input.dtype)  # linear in the weight: its value does not matter
    grads = vector_jacobian(lambda w: deform_conv2d(input, offset, w, *geometry), [leaf], grad_output)
    grad_weight += scale * grads[0]


def _modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group
    output.copy_(modulated_deform_conv2d(input, offset, mask, weight, bias if with_bias else None, *geometry))


def _modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group

    def convolve(x: Tensor, o: Tensor, m: Tensor, w: Tensor) -> Tensor:
        return modulated_deform_conv2d(x, o, m, w, None, *geometry)

    grads = vector_jacobian(convolve, [input, offset, mask, weight], grad_output)
    for total, grad in zip((grad_input, grad_offset, grad_mask, grad_weight), grads, strict=True):
        total += grad
    if with_bias:
        grad_bias += grad_output.sum((0, 2, 3))


KERNELS: dict[str, Callable] = {
    'deform_conv_forward': _deform_conv_forward,
    'deform_conv_backward_input': _deform_conv_backward_input,
    'deform_conv_backward_parameters': _deform_conv_backward_parameters,
    'modulated_deform_conv_forward': _modulated_deform_conv_forward,
    'modulated_deform_conv_backward': _modulated_deform_conv_backward,
}
