"""The inference form of the blocks of all families (:func:`backbones.fuse.fuse` builds it).

Once norms and layer scales are folded into the neighbouring weights, InceptionNeXt's, FasterNet's and ConvNeXt's blocks
compute the same function: a spatial mixer, then two matrix products over the channels of each position with an
activation in between, plus the input. On a CPU, wide maps are computed in groups of positions, so that the hidden
values, up to four times as wide as the map, never exist all at once. The products apply the activation and the sum
themselves if that is faster. On other devices, in mixed precision, and while a graph is recorded, all positions are
computed at once.

Shapes: N batch, C channels, D hidden channels, H and W height and width, P = N * H * W positions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.fast.gradients import refuse_gradients
from backbones.fast.plain_layers import is_plain
from backbones.fast.precision import autocast_dtype
from backbones.fast.recording import is_recorded

# Size of the hidden values that exist at a time. Below 32 MiB, from which on the C library maps and unmaps memory for
# every allocation, and large enough for the products to run at full rate (docs/benchmarks.md).
_HIDDEN_BYTES = 8 << 20


class RowNorm(nn.Module):
    """Layer norm over the channels of each position; its gain and bias are folded into the next layer.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        """``(P, C) -> (P, C)``."""
        return F.layer_norm(rows, rows.shape[-1:], eps=self.eps)


class FusedLinear(nn.Linear):
    """A linear layer for inference that also applies the activation or the sum after it.

    If oneDNN's products are faster on the CPU, they apply it to each tile of the product while it is in the cache.
    Nothing computed from the weights is kept.

    Args:
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=bias is not None, device='meta')
        self.weight = nn.Parameter(weight.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias)

    def linear_act(self, rows: Tensor, act: nn.Module) -> Tensor:
        """``act(self(rows))``, ``(P, in_features) -> (P, out_features)``."""
        post_op = _post_op(act)
        if post_op is None or not self.is_faster(rows):
            return _apply(act, self(rows))
        name, algorithm = post_op
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, name, [], algorithm)

    def linear_plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """``other + self(rows)``, ``(P, in_features), (P, out_features) -> (P, out_features)``."""
        if self.is_faster(rows):
            return torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.weight, self.bias, 'add')
        total = torch.addmm(other, rows, self.weight.t())
        return total if self.bias is None else total.add_(self.bias)

    def is_faster(self, rows: Tensor) -> bool:
        """Return whether oneDNN multiplies ``rows`` ``(P, in_features)`` faster than PyTorch's usual product."""
        return (
            rows.numel() * self.out_features >= _min_product()
            and type(rows) in (Tensor, nn.Parameter)  # others, such as fake tensors, may hold no values
            and rows.device.type == self.weight.device.type == 'cpu'
            and rows.dtype == self.weight.dtype == torch.float32
        )


def _min_product() -> float:
    """Return the number of multiplications from which on oneDNN is faster than MKL: its calls take 0.05 ms longer.

    This was measured with AVX512. With only AVX2, oneDNN took 0.7 to 1.4 times as long, by no clear rule.
    """
    has_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return 1 << 25 if has_onednn and torch.backends.cpu.get_cpu_capability() == 'AVX512' else math.inf


def _post_op(act: nn.Module) -> tuple[str, str] | None:
    """Return oneDNN's name and algorithm for an activation after a product; None if it does not support it."""
    if is_plain(act, nn.GELU):
        return 'gelu', act.approximate
    return ('relu', 'none') if is_plain(act, nn.ReLU) else None


def _apply(act: nn.Module, hidden: Tensor) -> Tensor:
    """Apply an activation, in place if there is such an operation."""
    if is_plain(act, nn.GELU):
        return torch.ops.aten.gelu_(hidden, approximate=act.approximate)
    return hidden.relu_() if is_plain(act, nn.ReLU) else act(hidden)


class FusedBlock(nn.Module):
    """``x + fc2(act(fc1(row_norm(mixer(x)))))`` for inference. It raises an error if a gradient would be needed.

    Args:
        mixer: ``(N, C, H, W) -> (N, C, H, W)``, a new tensor, which the block may overwrite.
        row_norm: ``(P, C) -> (P, C)``, or ``nn.Identity()``.
        fc1: C to D.
        act: Elementwise.
        fc2: D to C.
        is_scaled: Whether the weights of ``fc2`` include a layer scale. In mixed precision, a product with the scale
            returns to full precision.
    """

    def __init__(
        self,
        *,
        mixer: nn.Module,
        row_norm: nn.Module,
        fc1: FusedLinear,
        act: nn.Module,
        fc2: FusedLinear,
        is_scaled: bool = False,
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.row_norm = row_norm
        self.fc1 = fc1
        self.act = act
        self.fc2 = fc2
        self.is_scaled = is_scaled

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``, in channels-last memory format."""
        refuse_gradients(self, (x,))
        if is_recorded() or autocast_dtype(x) is not None or not self._is_plain():
            return self._forward_whole(x)
        x = x.contiguous(memory_format=torch.channels_last)
        rows, mixed = _rows(x), _rows(self.mixer(x))
        num_rows = self._num_rows(rows)
        if num_rows >= len(rows):
            mixed = self._add_branch(rows, mixed)
        else:
            for block, mixed_block in zip(rows.split(num_rows), mixed.split(num_rows), strict=True):
                mixed_block.copy_(self._add_branch(block, mixed_block))  # no longer needed: saves a new map
        n, c, h, w = x.shape
        return mixed.view(n, h, w, c).permute(0, 3, 1, 2)

    def _forward_whole(self, x: Tensor) -> Tensor:
        rows = self.row_norm(self.mixer(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        branch = self.fc2(self.act(self.fc1(rows)))
        if self.is_scaled:
            branch = branch.to(torch.promote_types(branch.dtype, self.fc2.weight.dtype))
        return x + branch.permute(0, 3, 1, 2)

    def _is_plain(self) -> bool:
        # A hook may keep the mixer's map, which must then not be overwritten.
        return all(is_plain(layer, FusedLinear) for layer in (self.fc1, self.fc2)) and is_plain(self.mixer)

    def _num_rows(self, rows: Tensor) -> int:
        if rows.device.type != 'cpu':
            return max(1, len(rows))
        return max(64, _HIDDEN_BYTES // (self.fc1.out_features * rows.element_size()))

    def _add_branch(self, rows: Tensor, mixed: Tensor) -> Tensor:
        """Add the MLP of ``mixed`` to ``rows``, all ``(P, C)``."""
        return self.fc2.linear_plus(self.fc1.linear_act(self.row_norm(mixed), self.act), rows)


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (P, C)``, a view if ``x`` is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
