"""The calling convention of mmcv's compiled extension for deformable convolution.

It passes buffers (``columns``, ``ones``) that are not needed here.
"""

from collections.abc import Callable

from torch import Tensor

from dense.compat.ops.common import vector_jacobian
from dense.compat.ops.deform import deform_conv2d, modulated_deform_conv2d


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
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group, False, im2col_step
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
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group, False, im2col_step
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
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group, False, im2col_step
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
