"""3 x 3 convolutions on a CPU with a quarter of the multiplications.

Winograd's algorithm F(4 x 4, 3 x 3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016. In one dimension, it treats six inputs and three weights as coefficients of polynomials. The values at six points
determine the product, so multiplying takes one multiplication per point. In two dimensions, a tile of 6 x 6 inputs and
the 3 x 3 weights are transformed to 36 points, multiplied there, and transformed back to 4 x 4 outputs. That takes 36
multiplications instead of the 144 of direct convolution. The sum over the input channels is taken at the points, so the
multiplications become 36 matrix products.

Shapes: N batch, C input channels, O output channels, H and W height and width, T tiles.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbones.fast.gradients import refuse_gradients
from backbones.fast.plain_layers import is_plain
from backbones.fast.precision import autocast_dtype
from backbones.fast.recording import is_recorded
from backbones.fast.weight_cache import WeightCache

# Outputs and inputs of a tile in each dimension.
_STEP, _TILE = 4, 6
# Points, in addition to infinity, at which the polynomials are evaluated. Among the sets of short binary fractions that
# were tried, this one has the smallest error, 2e-6 of the largest output. The usual 0, 1, -1, 2, -2 has 8e-6.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


class _Limits(NamedTuple):
    """Smallest sizes at which the products gain more than the transforms cost.

    Attributes:
        weights: Smallest product of input and output channels.
        tiles: Smallest number of tiles.
        outputs: Smallest average number of used outputs in a tile, out of 16: those beyond the edge are wasted.
        products: Smallest product of channels and tiles.
    """

    weights: int
    tiles: int
    outputs: int
    products: int


# Measured on processors with AVX512 and with AVX2 (docs/benchmarks.md); all others use the stricter limits.
_LIMITS = {'AVX512': _Limits(weights=256 * 256, tiles=128, outputs=14, products=1 << 23)}
_OTHER_LIMITS = _Limits(weights=256 * 256, tiles=128, outputs=14, products=1 << 24)


def _limits() -> _Limits:
    return _LIMITS.get(torch.backends.cpu.get_cpu_capability(), _OTHER_LIMITS)


# Sizes of the sums and of the inputs at the points that exist at a time. Together below 32 MiB, from which on the C
# library maps and unmaps memory for every allocation.
_SUM_BYTES = 20 << 20
_INPUT_BYTES = 12 << 20


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution with stride 1 and padding 1; output and gradients equal PyTorch's up to rounding.

    If Winograd's algorithm is not faster, PyTorch's own convolution is called: for small maps, on other devices, for
    other data types, and while a graph is recorded. Without gradients, the transformed weights are cached, in four
    times the memory of the weights, and recomputed after any change of the weights. Training starts by freeing them.
    Second derivatives are not available: requesting one raises an error.

    Args:
        conv: A convolution that :meth:`suits`. Its parameters are used, not copied.
        for_inference: Raise an error if a gradient would be needed.
    """

    def __init__(self, conv: nn.Conv2d, *, for_inference: bool = False) -> None:
        channels = conv.in_channels, conv.out_channels
        super().__init__(*channels, 3, padding=1, bias=conv.bias is not None, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.for_inference = for_inference
        self._transformed = WeightCache(_weight_at_points)
        self.train(conv.training)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Return whether a module is a convolution that this class can compute, with enough channels to be faster."""
        return (
            is_plain(module, nn.Conv2d)
            and module.kernel_size == (3, 3)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == 'zeros'
            and module.in_channels * module.out_channels >= _limits().weights
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, O, H, W)``."""
        if self.for_inference:
            refuse_gradients(self, (x,))
        if not self.is_faster(x):
            return super().forward(x)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, self.weight, self.bias)):
            return _Convolution.apply(x, self.weight, self.bias)
        return _convolve(x, self._transformed.of(self.weight), self.bias)

    def is_faster(self, x: Tensor) -> bool:
        """Return whether Winograd's algorithm is faster than PyTorch's for ``x`` ``(N, C, H, W)``."""
        if x.dim() != 4 or x.numel() == 0 or is_recorded():
            return False
        limits = _limits()
        tiles = len(x) * _num_tiles(x.shape[2]) * _num_tiles(x.shape[3])
        return (
            type(x) in (Tensor, nn.Parameter)  # others, such as fake tensors, may hold no values
            and x.device.type == self.weight.device.type == 'cpu'
            and x.dtype == self.weight.dtype == torch.float32
            and autocast_dtype(x) is None
            and tiles >= limits.tiles
            and tiles * self.in_channels * self.out_channels >= limits.products
            and len(x) * x.shape[2] * x.shape[3] >= limits.outputs * tiles
        )

    def train(self, mode: bool = True) -> 'WinogradConv2d':
        """Set the mode, and free the cached weights."""
        self._transformed.drop()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> 'WinogradConv2d':  # of to(), half(), cuda() ...
        self._transformed.drop()
        return super()._apply(*args, **kwargs)


def use_winograd(model: nn.Module, *, for_inference: bool = False) -> int:
    """Replace every suitable convolution of a model, in place. Parameters and their names do not change.

    Args:
        model: Any module.
        for_inference: See :class:`WinogradConv2d`.

    Returns:
        How many layers were replaced.
    """
    suited = [module for module in model.modules() if WinogradConv2d.suits(module)]
    new = {module: WinogradConv2d(module, for_inference=for_inference) for module in suited}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent.register_module(name, new[child])
    return len(new)


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients, which use Winograd's algorithm, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, _weight_at_points(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _convolve(grad, _weight_at_points(weight.flip(2, 3).transpose(0, 1)), None)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, grad)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve ``(N, C, H, W)`` with weights at the points ``(36, O, C)`` into ``(N, O, H, W)``."""
    y = x.new_empty(len(x), weight.shape[1], *x.shape[2:])
    for band, above, out in _bands(x, y):
        tiles = _tiles(out)
        sums = x.new_empty(_TILE * _TILE, weight.shape[1], tiles.number)
        for part, values in _at_points(band, above, tiles):
            torch.baddbmm(sums, weight[..., part], values, beta=float(part.start > 0), out=sums)
        _transform_back(sums, bias, out, tiles)
    return y


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Compute the weights' gradient at the points: ``(N, C, H, W), (N, O, H, W) -> (O, C, 3, 3)``."""
    channels = grad.shape[1], x.shape[1]
    total = x.new_zeros(_TILE * _TILE, *channels)
    for band, above, of_out in _bands(x, grad):
        tiles = _tiles(of_out)
        of_sums = _outputs_at_points(of_out, tiles)
        for part, values in _at_points(band, above, tiles):
            torch.baddbmm(total[..., part], of_sums, values.transpose(1, 2), out=total[..., part])
    return torch.mm(_weight_transform().t(), total.flatten(1)).view(3, 3, *channels).permute(2, 3, 0, 1).contiguous()


class _Tiles(NamedTuple):
    """The tiles of several images placed side by side, with one or more columns of zeros in between."""

    rows: int
    columns: int
    pitch: int  # positions from one image to the next

    @property
    def number(self) -> int:
        return self.rows * self.columns


def _tiles(y: Tensor) -> _Tiles:
    n, _, h, w = y.shape
    per_image = _num_tiles(w + (n > 1))
    return _Tiles(_num_tiles(h), n * per_image, per_image * _STEP)


def _bands(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Split inputs and outputs into groups of images, or one image into bands, to keep the sums at the points small.

    Yields:
        Inputs, including one row above and below if the image has one; missing rows of padding above; outputs.
    """
    height = x.shape[2]
    num_tiles = _SUM_BYTES // (_TILE * _TILE * y.shape[1] * y.element_size())
    rows = max(1, num_tiles // _num_tiles(x.shape[3])) * _STEP
    images = max(1, rows // (_num_tiles(height) * _STEP))
    for inputs, outputs in zip(x.split(images), y.split(images), strict=True):
        for top in range(0, height, rows):
            yield inputs[:, :, max(top - 1, 0) : top + rows + 1], int(top == 0), outputs[:, :, top : top + rows]


def _at_points(band: Tensor, above: int, tiles: _Tiles) -> Iterator[tuple[slice, Tensor]]:
    """Transform the inputs to the points, some channels at a time.

    Args:
        band: ``(N, C, at most 4 * rows + 2, W)``.
        above: Rows of zeros to add above the band.
        tiles: Of the band's outputs.

    Yields:
        Which channels, and their values at the points, ``(36, channels, T)``.
    """
    n, channels, rows, w = band.shape
    held = max(64, _INPUT_BYTES // (_TILE * _TILE * tiles.number * band.element_size()) // 64 * 64)
    # Values that are never written stay zero: they are the padding.
    padded = band.new_zeros(held, 1, tiles.rows * _STEP + 2, tiles.columns * _STEP + 2)
    for start in range(0, channels, held):
        part = slice(start, min(start + held, channels))
        given = padded[: part.stop - start]
        target = given[:, 0, above : above + rows, 1:-1].unflatten(2, (n, tiles.pitch))[..., :w]
        target.copy_(band[:, part].permute(1, 2, 0, 3))
        yield part, F.conv2d(given, _input_transform(), stride=_STEP).flatten(2).transpose(0, 1)


def _transform_back(sums: Tensor, bias: Tensor | None, out: Tensor, tiles: _Tiles) -> None:
    """Transform sums at the points ``(36, O, T)`` into outputs ``(N, O, H, W)``."""
    n, channels, h, w = out.shape
    y = torch.mm(_output_transform(), sums.flatten(1))  # (16, O * T)
    y = y.view(_STEP, _STEP, channels, tiles.rows, tiles.columns).permute(2, 3, 0, 4, 1)  # (O, rows, 4, columns, 4)
    y = y.reshape(channels, tiles.rows * _STEP, n, tiles.pitch)[:, :h, :, :w].permute(2, 0, 1, 3)
    if bias is None:
        out.copy_(y)
    else:
        torch.add(y, bias.view(-1, 1, 1), out=out)


def _outputs_at_points(of_out: Tensor, tiles: _Tiles) -> Tensor:
    """Compute the gradient of the sums at the points ``(36, O, T)`` from that of the outputs ``(N, O, H, W)``."""
    n, channels, h, w = of_out.shape
    padded = of_out.new_zeros(channels, tiles.rows * _STEP, n, tiles.pitch)
    padded[:, :h, :, :w] = of_out.permute(1, 2, 0, 3)
    in_tiles = padded.view(channels, tiles.rows, _STEP, tiles.columns, _STEP).permute(2, 4, 0, 1, 3)
    return torch.mm(_output_transform().t(), in_tiles.reshape(_STEP * _STEP, -1)).view(-1, channels, tiles.number)


def _num_tiles(size: int) -> int:
    return -(-size // _STEP)


def _weight_at_points(weight: Tensor) -> Tensor:
    """``(O, C, 3, 3) -> (36, O, C)``."""
    return torch.mm(_weight_transform(), weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


@cache
def _weight_transform() -> Tensor:
    """Return the matrix ``(36, 9)`` that transforms weights to the points."""
    return _in_both_directions(_transforms()[1])


@cache
def _input_transform() -> Tensor:
    """Return the weights ``(36, 1, 6, 6)`` of the convolution that transforms one channel's tiles to the points."""
    return _in_both_directions(_transforms()[2]).view(-1, 1, _TILE, _TILE)


@cache
def _output_transform() -> Tensor:
    """Return the matrix ``(16, 36)`` that transforms sums at the points into a tile of outputs."""
    return _in_both_directions(_transforms()[0])


def _in_both_directions(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(np.kron(matrix, matrix)).float()


@cache
def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the one-dimensional transforms: points to outputs (4, 6), weights (6, 3) and inputs (6, 6) to points.

    Weights are evaluated at the points (a Vandermonde matrix); the same matrix, transposed, turns sums into outputs.
    Inputs use the transposed interpolation through the points (Lagrange polynomials, whose denominators are moved to
    the weights).
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
