"""The MLP of a block, trained without storing its hidden maps (:func:`lean_mlp`).

Between its two products, an MLP has D = 3 C or 4 C hidden values at each position, before and after the activation.
They are most of what a training step of InceptionNeXt or ConvNeXt stores for its backward pass. Here, a few hundred
positions are computed at a time, so that their values stay in the CPU's cache between the products, and the backward
pass recomputes them. Recomputing a value before the activation takes C multiplications; storing it takes four bytes. So
stages with many channels, which have few positions, store it and recompute only the activation.

Maps keep their memory format. They are read and written as matrices with one column per position, whose values are
contiguous (channels last) or strided.

Shapes: N batch, C channels, D hidden channels, H and W height and width, P positions: H * W of one image, or N * H * W.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbones.fast.plain_layers import is_plain, is_plain_mlp
from backbones.fast.precision import autocast_dtype
from backbones.fast.recording import is_recorded

# Number of channels up to which the values before the activation are recomputed. With recomputation, InceptionNeXt-T's
# block of 96 channels took 0.7 of the plain block's time, that of 192 channels 1.1, but 1.0 if they were stored (Xeon,
# one thread). With only AVX2, MLPs of 96, 192 and 384 channels took 0.7, 1.0 and 1.7, and 0.8, 0.8 and 1.1 if stored.
_RECOMPUTED_CHANNELS = 128
# Size of the hidden values computed at a time. On a CPU: half of a core's second-level cache, or, if they are stored
# and go to main memory anyway, enough for the products to run at full speed. Other devices need large products.
_RECOMPUTED_BYTES, _KEPT_BYTES, _DEVICE_BYTES = 1 << 20, 8 << 20, 256 << 20


def can_be_lean(mlp: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether :func:`lean_mlp` should compute an MLP: one with plain layers, biases and an exact GELU.

    Without gradients the answer is no. Nothing is stored then in any case, and calling the layers themselves makes a
    validation during training give exactly the results of a test.

    Args:
        mlp: Any module.
        kind: A class with ``fc1``, ``act`` and ``fc2``; only MLPs of exactly this class qualify.
    """
    return (
        torch.is_grad_enabled()
        and is_plain_mlp(mlp, kind)
        and is_plain(mlp.act, nn.GELU)
        and mlp.act.approximate == 'none'
        and mlp.fc1.bias is not None
        and mlp.fc2.bias is not None
    )


def lean_mlp(x: Tensor, *, fc1: nn.Module, fc2: nn.Module, gamma: Tensor | None) -> Tensor:
    """Compute ``gamma * fc2(gelu(fc1(x)))`` at each position, with the usual gradients up to rounding.

    Second derivatives are not available: requesting one raises an error.

    Args:
        x: ``(N, C, H, W)``.
        fc1: Linear layer or 1 x 1 convolution with bias, C to D. Only the layers' parameters are used; see
            :func:`can_be_lean`.
        fc2: The same, D to C.
        gamma: Layer scale ``(C,)``, or None.

    Returns:
        ``(N, C, H, W)``, in the memory format of ``x``. In mixed precision, it has the data type of a product with
        ``gamma``.
    """
    tensors = [x, fc1.weight.flatten(1), fc1.bias, fc2.weight.flatten(1), fc2.bias, gamma]
    dtype = x.dtype
    low = autocast_dtype(x)
    if low is not None:
        dtype = low if gamma is None else torch.promote_types(low, gamma.dtype)
        tensors = [None if tensor is None else tensor.to(low) for tensor in tensors]
    if is_recorded() or x.numel() == 0 or x.is_meta:
        return _plain_mlp(*tensors).to(dtype)
    keep = torch.is_grad_enabled() and x.shape[1] > _RECOMPUTED_CHANNELS
    with torch.autocast(x.device.type, enabled=False):
        return _LeanMlp.apply(*tensors, keep).to(dtype)


def _plain_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, gamma: Tensor | None
) -> Tensor:
    hidden = F.gelu(F.linear(x.permute(0, 2, 3, 1), weight1, bias1))  # (N, H, W, D)
    out = F.linear(hidden, weight2, bias2)
    return (out if gamma is None else out * gamma).permute(0, 3, 1, 2)


class _LeanMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        gamma: Tensor | None,
        keep: bool,
    ) -> Tensor:
        x = _dense(x)
        out = torch.empty_like(x)
        scaled, offset = (weight2, bias2) if gamma is None else (gamma[:, None] * weight2, gamma * bias2)
        before = x.new_empty(x.numel() // len(weight2) * len(weight1)) if keep else None
        parts = _Parts(x, out, hidden=before, num_hidden=len(weight1), num_buffers=2)
        for rows, out_rows, inside, hidden in parts:
            torch.addmm(bias1[:, None], weight1, rows, out=inside)
            torch.ops.aten.gelu.out(inside, out=hidden)
            torch.addmm(offset[:, None], scaled, hidden, out=out_rows)
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, gamma, before)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, bias2, gamma, before = ctx.saved_tensors
        grad_out = _like(grad_out, x)
        scaled = weight2 if gamma is None else gamma[:, None] * weight2
        grad_x = torch.empty_like(x)
        grad_weight1, outer = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1, total = torch.zeros_like(bias1), torch.zeros_like(bias2)
        parts = _Parts(x, grad_x, grad_out, hidden=before, num_hidden=len(weight1), num_buffers=3)
        for rows, grad_rows, grad, inside, hidden, grad_hidden in parts:
            if before is None:
                torch.addmm(bias1[:, None], weight1, rows, out=inside)
            torch.ops.aten.gelu.out(inside, out=hidden)
            outer.addmm_(grad, hidden.t())  # (C, D), gradient of weight2 without gamma
            torch.mm(scaled.t(), grad, out=grad_hidden)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, inside, grad_input=grad_hidden)
            grad_weight1.addmm_(grad_hidden, rows.t())
            grad_bias1.add_(grad_hidden.sum(1))
            total.add_(grad.sum(1))
            torch.mm(weight1.t(), grad_hidden, out=grad_rows)
        if gamma is None:
            return grad_x, grad_weight1, grad_bias1, outer, total, None, None
        # The output without gamma is weight2 @ hidden + bias2, so its product with grad_out needs only `outer`.
        grad_gamma = (weight2 * outer).sum(1) + bias2 * total
        return grad_x, grad_weight1, grad_bias1, gamma[:, None] * outer, gamma * total, grad_gamma, None


class _Parts:
    """Iterates over groups of positions of maps ``(N, C, H, W)``, with buffers for their hidden values.

    Args:
        maps: In the same memory format. Each yields a matrix ``(C, P')``, a view.
        hidden: Storage ``(N * D * H * W,)`` that keeps all values of the first buffer, or None.
        num_hidden: D.
        num_buffers: Number of matrices ``(D, P')`` for hidden values.
    """

    def __init__(self, *maps: Tensor, hidden: Tensor | None, num_hidden: int, num_buffers: int) -> None:
        self.is_last = maps[0].is_contiguous(memory_format=torch.channels_last)
        self.matrices = [self._matrices(m) for m in maps]
        self.hidden = hidden
        self.num_hidden = num_hidden
        self.step = self._num_columns(maps[0])
        own = num_buffers - (hidden is not None)
        self.buffers = [maps[0].new_empty(self.step * num_hidden) for _ in range(own)]

    def __iter__(self) -> Iterator[list[Tensor]]:
        taken = 0
        for matrices in zip(*self.matrices, strict=True):
            for start in range(0, matrices[0].shape[1], self.step):
                columns = [matrix[:, start : start + self.step] for matrix in matrices]
                size = columns[0].shape[1] * self.num_hidden
                flat = [buffer[:size] for buffer in self.buffers]
                if self.hidden is not None:
                    flat = [self.hidden[taken : taken + size], *flat]
                    taken += size
                yield columns + [self._hidden_matrix(values) for values in flat]

    def _num_columns(self, maps: Tensor) -> int:
        size = _RECOMPUTED_BYTES if self.hidden is None else _KEPT_BYTES
        if maps.device.type != 'cpu':
            size = _DEVICE_BYTES
        return min(self.matrices[0][0].shape[1], max(64, size // (maps.element_size() * self.num_hidden)))

    def _matrices(self, maps: Tensor) -> list[Tensor]:
        if self.is_last:
            return [maps.permute(1, 0, 2, 3).flatten(1)]
        return list(maps.flatten(2))

    def _hidden_matrix(self, values: Tensor) -> Tensor:
        return values.view(-1, self.num_hidden).t() if self.is_last else values.view(self.num_hidden, -1)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _like(tensor: Tensor, x: Tensor) -> Tensor:
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
