"""The MLP of a block, trained without ever holding its hidden map (:func:`lean_mlp`).

Between the two products of an MLP stand D = 3 C or 4 C hidden values at each position, before and after the
activation: most of what a training step of InceptionNeXt or ConvNeXt keeps for its backward pass. Here some hundred
positions are taken at a time, and the backward pass computes their hidden values again: one matrix product in six more,
for a quarter of the memory. On a CPU the values of these positions also stay in the cache between the products.

Shapes: N batch, C channels, D hidden channels, H and W height and width, P = N * H * W positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Hidden values that are held at a time.
_HIDDEN_BYTES = 4 << 20


def lean_mlp(x: Tensor, *, fc1: nn.Module, fc2: nn.Module, gamma: Tensor | None) -> Tensor:
    """``gamma * fc2(gelu(fc1(x)))`` at each position; gradients equal those of the plain computation up to rounding.

    Args:
        x: ``(N, C, H, W)``.
        fc1: Linear layer or 1 x 1 convolution with bias, C to D.
        fc2: The same, D to C.
        gamma: Layer scale ``(C,)``, or None.

    Returns:
        ``(N, C, H, W)``, in channels-last memory format.
    """
    n, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)  # (P, C)
    weights = [fc1.weight.flatten(1), fc1.bias, fc2.weight.flatten(1), fc2.bias]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        rows, *weights = (tensor.to(dtype) for tensor in (rows, *weights))
    with torch.autocast(x.device.type, enabled=False):
        out = _LeanMlp.apply(rows, *weights, None if gamma is None else gamma.to(rows.dtype))
    return out.view(n, h, w, c).permute(0, 3, 1, 2)


class _LeanMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, gamma: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(rows, weight1, bias1, weight2, bias2, gamma)
        out = torch.empty_like(rows)
        scaled, offset = (weight2, bias2) if gamma is None else (gamma[:, None] * weight2, gamma * bias2)
        for part in _parts(rows, weight1):
            hidden = torch.ops.aten.gelu_(F.linear(rows[part], weight1, bias1))
            torch.addmm(offset, hidden, scaled.t(), out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight1, bias1, weight2, bias2, gamma = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        scaled = weight2 if gamma is None else gamma[:, None] * weight2
        grad_rows = torch.empty_like(rows)
        grad_weight1, outer = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1 = torch.zeros_like(bias1)
        for part in _parts(rows, weight1):
            before = F.linear(rows[part], weight1, bias1)  # (P', D)
            outer.addmm_(grad_out[part].t(), F.gelu(before))  # (C, D), gradient of weight2 but for gamma
            grad_hidden = torch.ops.aten.gelu_backward(grad_out[part] @ scaled, before)
            grad_weight1.addmm_(grad_hidden.t(), rows[part])
            grad_bias1.add_(grad_hidden.sum(0))
            torch.mm(grad_hidden, weight1, out=grad_rows[part])
        total = grad_out.sum(0)
        if gamma is None:
            return grad_rows, grad_weight1, grad_bias1, outer, total, None
        # The output without gamma is hidden @ weight2.T + bias2; its product with grad_out needs only `outer`.
        grad_gamma = (weight2 * outer).sum(1) + bias2 * total
        return grad_rows, grad_weight1, grad_bias1, gamma[:, None] * outer, gamma * total, grad_gamma


def _parts(rows: Tensor, weight1: Tensor) -> list[slice]:
    """Slices of positions whose hidden values fit into :data:`_HIDDEN_BYTES`."""
    size = max(256, _HIDDEN_BYTES // (len(weight1) * rows.element_size()))
    return [slice(start, start + size) for start in range(0, len(rows), size)]
