"""The block that all families become in inference (:func:`backbones.fuse.fuse` builds it).

InceptionNeXt's, FasterNet's and ConvNeXt's blocks are one function once their norms and layer scales are folded into
the neighbouring weights: a spatial mixer, then two matrix products over the channels of each position with an
activation between, plus the input. On a CPU the weights of the products are laid out once in the order in which
oneDNN's kernels read them, the activation and the sum are applied to each tile of a product while it is in the cache,
and wide maps go through in blocks of positions, so that the hidden values, up to four times as wide as the map, never
exist at once. On other devices, and where a graph is recorded, the same function runs whole.

Shapes: N batch, C channels, D hidden channels, H and W height and width, P = N * H * W positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.derived import Derived
from backbones.lean import is_recorded

# Hidden values that are held at a time. Below the 32 MiB from which the C library maps and unmaps every block of
# memory anew, and large enough for the products to run at full rate (docs/benchmarks.md).
_HIDDEN_BYTES = 8 << 20


class RowNorm(nn.Module):
    """Layer norm over the channels of each position, its gain and bias folded into the layer that follows.

    Args:
        eps: Added to the variance.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        """``(P, C) -> (P, C)``."""
        return F.layer_norm(rows, rows.shape[-1:], eps=self.eps)


# Multiplications of a product from which oneDNN's kernels pay: preparing a call takes them 0.05 ms more than MKL's.
_MIN_PACKED = 1 << 25


class PackedLinear(nn.Linear):
    """A linear layer for inference, in the form that is fastest for the size of its product on a CPU.

    Large products take a second copy of the weights, laid out as oneDNN's kernels read them. It is made in the first
    such pass, again when the weights have changed, and is no part of the state dict. Small products take the weights
    themselves, which lie in memory as ``(in_features, out_features)``, as MKL wants them.

    Args:
        weight: ``(out_features, in_features)``.
        bias: ``(out_features,)``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=bias is not None, device='meta')
        self.weight = nn.Parameter(weight.t().contiguous().t())
        self.bias = None if bias is None else nn.Parameter(bias)
        self._packed = Derived(_pack)

    def activated(self, rows: Tensor, act: nn.Module) -> Tensor:
        """``act(self(rows))``, ``(P, in_features) -> (P, out_features)``."""
        if torch.is_autocast_enabled(rows.device.type) or not self._can_pack(rows):
            return _apply(act, self(rows))
        name, algorithm = _post_op(act)
        hidden = torch.ops.mkldnn._linear_pointwise(rows, self._packed.of(self.weight), self.bias, name, [], algorithm)
        return act(hidden) if name == 'none' else hidden

    def added(self, rows: Tensor, other: Tensor) -> Tensor:
        """``other + self(rows)``, ``(P, in_features), (P, out_features) -> (P, out_features)``."""
        if torch.is_autocast_enabled(rows.device.type):
            return other + self(rows)  # the sum stays in full precision
        if not self._can_pack(rows):
            total = torch.addmm(other, rows, self.weight.t())
            return total if self.bias is None else total.add_(self.bias)
        return torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._packed.of(self.weight), self.bias, 'add')

    def _can_pack(self, rows: Tensor) -> bool:
        return (
            rows.numel() * self.out_features >= _MIN_PACKED
            and rows.device.type == 'cpu'
            and rows.dtype == self.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _post_op(act: nn.Module) -> tuple[str, str]:
    """Name and algorithm under which oneDNN applies an activation to its products; ``none`` where it does not."""
    if isinstance(act, nn.GELU):
        return 'gelu', act.approximate
    return ('relu', 'none') if isinstance(act, nn.ReLU) else ('none', 'none')


def _apply(act: nn.Module, hidden: Tensor) -> Tensor:
    """Activation, in the memory of its input where there is such an operation."""
    if isinstance(act, nn.GELU):
        return torch.ops.aten.gelu_(hidden, approximate=act.approximate)
    return hidden.relu_() if isinstance(act, nn.ReLU) else act(hidden)


class FusedBlock(nn.Module):
    """``x + fc2(act(fc1(row_norm(mixer(x)))))`` for inference. Gradients do not flow through it.

    Args:
        mixer: ``(N, C, H, W) -> (N, C, H, W)``, a new tensor, which the block may overwrite.
        row_norm: ``(P, C) -> (P, C)``, or ``nn.Identity()``.
        fc1: C to D.
        act: Elementwise.
        fc2: D to C.
    """

    def __init__(self, *, mixer: nn.Module, row_norm: nn.Module, fc1: PackedLinear, act: nn.Module, fc2: PackedLinear):
        super().__init__()
        self.mixer = mixer
        self.row_norm = row_norm
        self.fc1 = fc1
        self.act = act
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``, in channels-last memory format."""
        if is_recorded():
            return self._forward_whole(x)
        x = x.contiguous(memory_format=torch.channels_last)
        rows, mixed = _rows(x), _rows(self.mixer(x))
        num_rows = self._num_rows(rows)
        if num_rows >= len(rows):
            mixed = self._add_branch(rows, mixed)
        else:
            for block, mixed_block in zip(rows.split(num_rows), mixed.split(num_rows), strict=True):
                mixed_block.copy_(self._add_branch(block, mixed_block))  # not needed any more: no new map
        n, _, h, w = x.shape
        return mixed.view(n, h, w, -1).permute(0, 3, 1, 2)

    def _forward_whole(self, x: Tensor) -> Tensor:
        rows = self.row_norm(self.mixer(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        return x + self.fc2(self.act(self.fc1(rows))).permute(0, 3, 1, 2)

    def _num_rows(self, rows: Tensor) -> int:
        if rows.device.type != 'cpu':
            return max(1, len(rows))
        return max(64, _HIDDEN_BYTES // (self.fc1.out_features * rows.element_size()))

    def _add_branch(self, rows: Tensor, mixed: Tensor) -> Tensor:
        """``rows`` and ``mixed`` ``(P, C) -> (P, C)``."""
        return self.fc2.added(self.fc1.activated(self.row_norm(mixed), self.act), rows)


def _rows(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (P, C)``, a view if ``x`` lies channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
