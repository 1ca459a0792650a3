"""The block that all families become in inference (:func:`backbones.fuse.fuse` builds it).

InceptionNeXt's, FasterNet's and ConvNeXt's blocks are one function once their norms and layer scales are folded into
the neighbouring weights: a spatial mixer, then two matrix products over the channels of each position with an
activation between, plus the input. On a CPU the two products run over a few hundred positions at a time, so that the
hidden values, up to four times as wide as the map, stay in the cache and are never written to memory; the result is
added to the input in place. On other devices, and where a graph is recorded, the same function runs whole.

Shapes: N batch, C channels, D hidden channels, H and W height and width, P = N * H * W positions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Hidden values that are held at a time: half of a core's second-level cache, together for the threads of a product.
_HIDDEN_BYTES = 1 << 20

_IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.GELU: torch.ops.aten.gelu_,
    nn.ReLU: torch.relu_,
}


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


class FusedBlock(nn.Module):
    """``x + fc2(act(fc1(row_norm(mixer(x)))))`` for inference.

    It may change its input in place: whoever calls it gives the map away. Gradients do not flow through it.

    Args:
        mixer: ``(N, C, H, W) -> (N, C, H, W)``, a new tensor.
        row_norm: ``(P, C) -> (P, C)``, or ``nn.Identity()``.
        fc1: C to D.
        act: Elementwise.
        fc2: D to C.
    """

    def __init__(self, *, mixer: nn.Module, row_norm: nn.Module, fc1: nn.Linear, act: nn.Module, fc2: nn.Linear):
        super().__init__()
        self.mixer = mixer
        self.row_norm = row_norm
        self.fc1 = fc1
        self.act = act
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``, in channels-last memory format."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return self._forward_whole(x)
        x = x.contiguous(memory_format=torch.channels_last)
        mixed = self.mixer(x).permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # (P, C)
        rows = x.permute(0, 2, 3, 1).view(-1, x.shape[1])  # (P, C), the memory of x
        num_rows = self._num_rows(rows)
        for start in range(0, len(rows), num_rows):
            self._add_rows(rows[start : start + num_rows], mixed[start : start + num_rows])
        return x

    def _forward_whole(self, x: Tensor) -> Tensor:
        rows = self.row_norm(self.mixer(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        return x + self.fc2(self.act(self.fc1(rows))).permute(0, 3, 1, 2)

    def _num_rows(self, rows: Tensor) -> int:
        if rows.device.type != 'cpu':
            return max(1, len(rows))
        return max(64, _HIDDEN_BYTES // (self.fc1.out_features * rows.element_size()))

    def _add_rows(self, out: Tensor, mixed: Tensor) -> None:
        """Add the branch of some positions, ``mixed`` ``(P, C)``, to ``out`` ``(P, C)``."""
        hidden = self.fc1(self.row_norm(mixed))  # (P, D)
        in_place = _IN_PLACE.get(type(self.act), self.act)
        out.addmm_(in_place(hidden), self.fc2.weight.t())
        if self.fc2.bias is not None:
            out.add_(self.fc2.bias)
