"""The arithmetic of mmcv's synchronised batch norm, in the calling convention of its compiled extension.

mmcv's own autograd function gathers the statistics of all processes between these steps. They compute in float32.

Legend of shapes: N images, C channels, L pixels of this process.
"""

from collections.abc import Callable

from torch import Tensor


def _forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of ``input`` (N, C, L) into ``mean`` (C,)."""
    mean.copy_(input.float().mean((0, 2)))


def _forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared distance of ``input`` (N, C, L) from ``mean`` (C,) into ``var`` (C,)."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def _forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Write standard deviations (C,), normalised and affine maps (N, C, L), and move the running statistics."""
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm if weight is None or bias is None else norm * weight[:, None] + bias[:, None])
    if running_mean is None or running_var is None:
        return
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def _backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the gradients of weight and bias (C,)."""
    grad_weight.copy_((grad_output.float() * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def _backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input (N, C, L), given the mean gradients of the parameters over all processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output.float() - through_statistics))


KERNELS: dict[str, Callable] = {
    'sync_bn_forward_mean': _forward_mean,
    'sync_bn_forward_var': _forward_var,
    'sync_bn_forward_output': _forward_output,
    'sync_bn_backward_param': _backward_param,
    'sync_bn_backward_data': _backward_data,
}
