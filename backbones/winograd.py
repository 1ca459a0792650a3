"""3 x 3 convolutions for inference on a CPU with a quarter of the multiplications.

Minimal filtering F(4 x 4, 3 x 3), after Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016. Six inputs and three weights in a row are the coefficients of polynomials, whose product is had from their
values at six points. So a tile of 6 x 6 inputs and the 3 x 3 weights are carried to 36 points, multiplied there, and
carried back to 4 x 4 outputs: 36 multiplications for what takes 144 as a sum over the window. The sum over the input
channels is taken at the points, which makes the multiplications 36 matrix products.

Shapes: N batch, C input channels, O output channels, H and W height and width, T tiles.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.derived import Derived

# Outputs and inputs of a tile in each direction.
_STEP, _TILE = 4, 6
# Where the polynomials are evaluated, besides at infinity: of the sets of short binary fractions that were tried, the
# one with the smallest error, 2e-6 of the largest output. The usual 0, 1, -1, 2, -2 leaves 8e-6.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)

# Smaller weights and smaller maps lose more in the transformations than the products gain (docs/benchmarks.md).
_MIN_WEIGHTS = 256 * 256
_MIN_TILES = 128
_MIN_OUTPUTS = 14  # of the 16 of a tile, on average: what lies beyond the edge is computed for nothing
# Sums at the points, and inputs at the points, that are held at a time. Together below the 32 MiB from which the C
# library maps and unmaps every block of memory anew.
_SUM_BYTES = 20 << 20
_INPUT_BYTES = 12 << 20


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 and padding 1 for inference, equal to PyTorch's up to rounding.

    PyTorch's own convolution computes what would not gain: small maps, other devices and data types, and what is
    recorded as a graph. The weights at the points take four times the memory of the weights.

    Args:
        conv: One that :meth:`suits`. Its parameters are used, not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        channels = conv.in_channels, conv.out_channels
        super().__init__(*channels, 3, padding=1, bias=conv.bias is not None, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self._weight_at_points = Derived(_weight_at_points)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Whether a module is a convolution of the kind that this one computes, with weights enough to gain."""
        return (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == 'zeros'
            and module.in_channels * module.out_channels >= _MIN_WEIGHTS
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H, W)``."""
        if not self._gains(x):
            return super().forward(x)
        y = x.new_empty(len(x), self.out_channels, *x.shape[2:])
        tiles = _SUM_BYTES // (_TILE * _TILE * self.out_channels * x.element_size())
        for band, above, out in _bands(x, y, tiles):
            self._convolve(band, above, out)
        return y

    def _gains(self, x: Tensor) -> bool:
        tiles = len(x) * _num_tiles(x.shape[-2]) * _num_tiles(x.shape[-1])
        return (
            not (torch.compiler.is_compiling() or torch.jit.is_tracing())
            and x.dim() == 4
            and x.device.type == 'cpu'
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled('cpu')
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and tiles >= _MIN_TILES
            and len(x) * x.shape[-2] * x.shape[-1] >= _MIN_OUTPUTS * tiles
        )

    def _convolve(self, band: Tensor, above: int, out: Tensor) -> None:
        """``(N, C, <= H + 2, W) -> (N, O, H, W)``, with ``above`` rows of zeros to be put above the band."""
        n, channels, rows, w = band.shape
        th, pitch = _num_tiles(out.shape[2]), _pitch(n, w)
        tw = n * pitch // _STEP
        weight = self._weight_at_points.of(self.weight)
        sums = band.new_empty(_TILE * _TILE, self.out_channels, th * tw)
        # All images side by side. What is not written stays zero: it is the padding.
        row = band.new_zeros(_channels_held(th * tw), th * _STEP + 2, tw * _STEP + 2)
        for start in range(0, channels, len(row)):
            part = slice(start, min(start + len(row), channels))
            held = row[: part.stop - start]
            target = held[:, above : above + rows, 1:-1].unflatten(2, (n, pitch))[..., :w]
            target.copy_(band[:, part].permute(1, 2, 0, 3))
            torch.baddbmm(sums, weight[..., part], _at_points(held), beta=float(start > 0), out=sums)
        self._carry_back(sums, out, (th, tw))

    def _carry_back(self, sums: Tensor, out: Tensor, tiles: tuple[int, int]) -> None:
        """``(36, O, T) -> (N, O, H, W)``."""
        n, channels, h, w = out.shape
        y = torch.mm(_output_transform(), sums.flatten(1))  # (16, O * T)
        y = y.view(_STEP, _STEP, channels, *tiles).permute(2, 3, 0, 4, 1)  # (O, th, 4, tw, 4)
        y = y.reshape(channels, tiles[0] * _STEP, n, -1)[:, :h, :, :w].permute(2, 0, 1, 3)
        if self.bias is None:
            out.copy_(y)
        else:
            torch.add(y, self.bias.view(-1, 1, 1), out=out)


def _num_tiles(size: int) -> int:
    return -(-size // _STEP)


def _pitch(num_images: int, width: int) -> int:
    """Columns from one image to the next when they lie side by side, at least one of zeros between."""
    return _num_tiles(width + (num_images > 1)) * _STEP


def _channels_held(num_tiles: int) -> int:
    """Input channels that are carried to the points at a time, a multiple of 64."""
    return max(64, _INPUT_BYTES // (_TILE * _TILE * num_tiles * 4) // 64 * 64)


def _bands(x: Tensor, y: Tensor, num_tiles: int) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Cut inputs and outputs alike into several images, or rows of one, of about ``num_tiles`` tiles.

    Yields:
        Inputs with one row above and below, where the image has one; how many rows of padding it lacks above; outputs.
    """
    height = x.shape[2]
    rows = max(1, num_tiles // _num_tiles(x.shape[3])) * _STEP
    images = max(1, rows // (_num_tiles(height) * _STEP))
    for inputs, outputs in zip(x.split(images), y.split(images), strict=True):
        for top in range(0, height, rows):
            yield inputs[:, :, max(top - 1, 0) : top + rows + 1], int(top == 0), outputs[:, :, top : top + rows]


def _at_points(row: Tensor) -> Tensor:
    """``(C, 4 th + 2, 4 tw + 2) -> (36, C, th * tw)``, a view: the values of every tile at the points."""
    return F.conv2d(row.unsqueeze(1), _input_transform(), stride=_STEP).flatten(2).transpose(0, 1)


def _weight_at_points(weight: Tensor) -> Tensor:
    """``(O, C, 3, 3) -> (36, O, C)``."""
    to_points = torch.from_numpy(_transforms()[1])
    values = torch.einsum('pi,ocij,qj->pqoc', to_points, weight.double(), to_points)
    return values.flatten(0, 1).to(weight.dtype).contiguous()


@cache
def _input_transform() -> Tensor:
    """Weights ``(36, 1, 6, 6)`` of the convolution that carries tiles of one channel to the points."""
    to_points = torch.from_numpy(_transforms()[2])
    return torch.einsum('pi,qj->pqij', to_points, to_points).reshape(_TILE**2, 1, _TILE, _TILE).float()


@cache
def _output_transform() -> Tensor:
    """Matrix ``(16, 36)`` that carries sums at the points back to a tile of outputs."""
    back = torch.from_numpy(_transforms()[0])
    return torch.einsum('ip,jq->ijpq', back, back).reshape(_STEP**2, _TILE**2).float()


@cache
def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the filtering in one direction: outputs from points (4, 6), weights (6, 3) and inputs (6, 6) to them.

    Evaluation at the points (Vandermonde) carries weights, and, transposed, the sums; interpolation through them
    (Lagrange polynomials, their denominators moved to the weights), transposed, the inputs.
    """
    points = np.array(_POINTS)
    infinity = np.eye(_TILE)[-1:]
    others = [np.delete(points, i) for i in range(len(points))]
    denominators = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    back = np.vstack([np.vander(points, _STEP, increasing=True), infinity[:, -_STEP:]]).T
    weights = np.vstack([np.vander(points, 3, increasing=True) / denominators[:, None], infinity[:, -3:]])
    inputs = np.zeros((_TILE, _TILE))
    for i, rest in enumerate(others):
        inputs[i, :-1] = np.poly(rest)[::-1]
    inputs[-1] = np.poly(points)[::-1]
    return back, weights, inputs
