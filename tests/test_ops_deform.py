"""Does deformable convolution, called as models call it, do what its definition says?"""

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.compat import extension
from dense.compat.ops import deform as served

extension.install()

from mmcv.ops import (  # noqa: E402
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    SAConv2d,
    deform_conv2d,
    modulated_deform_conv2d,
)
from mmcv.ops.deform_conv import DeformConv2dFunction  # noqa: E402
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate a plane (H, W) that continues with zeros."""
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def deform_conv_by_definition(
    x: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray | None,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: tuple,
    padding: tuple,
    dilation: tuple,
    groups: int,
    deform_groups: int,
) -> np.ndarray:
    """Sum over kernel elements and channels, one output pixel at a time."""
    num_out, per_group, kernel_h, kernel_w = weight.shape
    height, width = offset.shape[2:]
    result = np.zeros((len(x), num_out, height, width))
    points = offset.reshape(len(x), deform_groups, kernel_h, kernel_w, 2, height, width)
    weights = None if mask is None else mask.reshape(len(x), deform_groups, kernel_h, kernel_w, height, width)
    for n, o, i, j in np.ndindex(*result.shape):
        for c, a, b in np.ndindex(per_group, kernel_h, kernel_w):
            channel = o // (num_out // groups) * per_group + c
            group = channel // (x.shape[1] // deform_groups)
            dy, dx = points[n, group, a, b, :, i, j]
            row = i * stride[0] - padding[0] + a * dilation[0] + dy
            column = j * stride[1] - padding[1] + b * dilation[1] + dx
            sample = bilinear(x[n, channel], row, column) * weight[o, c, a, b]
            result[n, o, i, j] += sample if weights is None else sample * weights[n, group, a, b, i, j]
        if bias is not None:
            result[n, o, i, j] += bias[o]
    return result


# Name: images, input and output channels, kernel, input size, stride, padding, dilation, groups, deform_groups.
GEOMETRIES = {
    'plain': (2, 2, 3, (3, 3), (5, 6), (1, 1), (1, 1), (1, 1), 1, 1),
    'strided': (1, 2, 2, (3, 3), (7, 6), (2, 1), (1, 2), (1, 1), 1, 1),
    'dilated': (1, 2, 2, (3, 3), (6, 7), (1, 1), (2, 2), (2, 2), 1, 1),
    'grouped': (1, 4, 4, (3, 3), (5, 5), (1, 1), (1, 1), (1, 1), 2, 1),
    'deform_groups': (1, 4, 2, (3, 3), (4, 5), (1, 1), (1, 1), (1, 1), 1, 2),
    'all_groups': (2, 4, 4, (2, 3), (5, 4), (2, 2), (1, 1), (1, 2), 2, 2),
    'pointwise': (1, 3, 2, (1, 1), (3, 4), (1, 1), (0, 0), (1, 1), 1, 1),
    'depthwise': (1, 3, 3, (3, 3), (4, 4), (1, 1), (1, 1), (1, 1), 3, 3),
}
VERSIONS = ('v1', 'v2', 'v2_bias')
OFFSETS = {'zero': 0.0, 'small': 0.7, 'far': 20.0}
CASES = [(name, version, offset) for name in GEOMETRIES for version in VERSIONS for offset in OFFSETS]


def tensors_of(name: str, version: str, offset: str, device: str = 'cpu') -> tuple[list[Tensor], tuple]:
    """Return input, offset and weight, or input, offset, mask, weight (and bias), in float64, and the geometry."""
    rng = torch.Generator().manual_seed(0)
    num, channels, num_out, kernel, size, stride, padding, dilation, groups, deform_groups = GEOMETRIES[name]
    out = [(size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
    points = deform_groups * kernel[0] * kernel[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    tensors = [draw(num, channels, *size), draw(num, 2 * points, *out) * OFFSETS[offset]]
    if version != 'v1':
        tensors.append(draw(num, points, *out).sigmoid())
    tensors.append(draw(num_out, channels // groups, *kernel))
    if version == 'v2_bias':
        tensors.append(draw(num_out))
    tensors = [tensor.to(device).requires_grad_() for tensor in tensors]
    return tensors, (stride, padding, dilation, groups, deform_groups)


def call(version: str, tensors: list[Tensor], geometry: tuple, through_kernels: bool = False) -> Tensor:
    if version == 'v1':
        return (DeformConv2dFunction.apply if through_kernels else deform_conv2d)(*tensors, *geometry)
    bias = [] if version == 'v2_bias' else [None]
    function = ModulatedDeformConv2dFunction.apply if through_kernels else modulated_deform_conv2d
    return function(*tensors, *bias, *geometry)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('name', 'version', 'offset'), CASES)
def test_deform_conv_matches_the_definition(name: str, version: str, offset: str, device: str) -> None:
    tensors, geometry = tensors_of(name, version, offset, device)
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    if version == 'v1':
        arrays.insert(2, None)
    if version != 'v2_bias':
        arrays.append(None)
    expected = deform_conv_by_definition(*arrays, *geometry)
    np.testing.assert_allclose(call(version, tensors, geometry).detach().cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['plain', 'strided', 'all_groups'])
def test_zero_offset_is_an_ordinary_convolution(name: str) -> None:
    tensors, geometry = tensors_of(name, 'v1', 'zero')
    expected = torch.nn.functional.conv2d(tensors[0], tensors[2], None, *geometry[:4])
    torch.testing.assert_close(call('v1', tensors, geometry), expected)


GRADCHECK_CASES = [(name, version) for name in ('plain', 'all_groups') for version in ('v1', 'v2_bias')]


@pytest.mark.parametrize(('name', 'version'), GRADCHECK_CASES)
def test_gradcheck(name: str, version: str) -> None:
    tensors, geometry = tensors_of(name, version, 'small')
    small = [
        tensor[:1] if at < len(tensors) - (2 if version == 'v2_bias' else 1) else tensor
        for at, tensor in enumerate(tensors)
    ]
    leaves = [tensor.detach().requires_grad_() for tensor in small]
    assert torch.autograd.gradcheck(lambda *leaves: call(version, list(leaves), geometry), leaves, fast_mode=True)


KERNEL_CASES = [(name, version) for name in GEOMETRIES for version in VERSIONS]


@pytest.mark.parametrize(('name', 'version'), KERNEL_CASES)
def test_calling_convention_of_the_extension_gives_the_same(name: str, version: str) -> None:
    results = []
    for through_kernels in (False, True):
        tensors, geometry = tensors_of(name, version, 'small')
        result = call(version, tensors, geometry, through_kernels)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
        results.append([result.detach(), *(tensor.grad for tensor in tensors)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(('name', 'version', 'offset'), CASES)
def test_fixed_order_equals_the_kernel(name: str, version: str, offset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for fixed_order in (False, True):
        monkeypatch.setattr(served, 'needs_determinism', lambda tensor, fixed_order=fixed_order: fixed_order)
        tensors, geometry = tensors_of(name, version, offset)
        result = call(version, tensors, geometry)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
        gradients = [tensor.grad for tensor in tensors]
        if offset == 'zero':
            gradients[1] = None  # at whole pixels the two sides have different slopes; either is one
        results.append([result.detach(), *(gradient for gradient in gradients if gradient is not None)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('version', VERSIONS)
def test_no_image_gives_no_output_and_zero_gradients(version: str) -> None:
    tensors, geometry = tensors_of('plain', version, 'small')
    num_batched = 2 if version == 'v1' else 3
    leaves = [t.detach()[:0] if at < num_batched else t.detach() for at, t in enumerate(tensors)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = call(version, leaves, geometry)
    result.sum().backward()
    assert result.shape == (0, 3, 5, 6)
    assert all(leaf.grad.abs().sum() == 0 for leaf in leaves)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layers_under_autocast(layer: type, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = layer(4, 6, 3, padding=1)
    torch.nn.init.normal_(module.conv_offset.weight, std=0.02)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    exact = module(x)
    with torch.autocast('cpu', dtype=dtype):
        result = module(x)
    result.sum().backward()
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, rtol=0.1, atol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_a_batch_need_not_be_a_multiple_of_the_step() -> None:
    module = DeformConv2dPack(2, 2, 3, padding=1, im2col_step=2)
    assert module(torch.zeros(3, 2, 5, 5)).shape == (3, 2, 5, 5)


def test_a_module_that_bound_the_name_early_is_served_too() -> None:
    # The switchable convolution imports deform_conv2d while mmcv.ops is being imported.
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    SAConv2d(2, 2, 3, padding=1, use_deform=True)(x).sum().backward()
    module = sys.modules['mmcv.ops.saconv']
    assert module.deform_conv2d is deform_conv2d and torch.isfinite(x.grad).all()


def test_deform_conv_compiles_in_one_graph() -> None:
    tensors, geometry = tensors_of('plain', 'v2_bias', 'small')
    tensors = [tensor.detach().float() for tensor in tensors]
    compiled = torch.compile(modulated_deform_conv2d, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(*tensors, *geometry), modulated_deform_conv2d(*tensors, *geometry))


WRONG = [
    ('input', lambda x, o, m, w: (x[:, :1], o, m, w), {}),
    ('offset', lambda x, o, m, w: (x, o[:, :-1], m, w), {}),
    ('mask', lambda x, o, m, w: (x, o, m[:, :-1], w), {}),
    ('input', lambda x, o, m, w: (x, o, m, w), {'groups': 2}),
    ('offset', lambda x, o, m, w: (x, o, m, w), {'deform_groups': 2}),
]


@pytest.mark.parametrize(('name', 'spoil', 'options'), WRONG)
def test_a_wrong_shape_is_named(name: str, spoil, options: dict) -> None:
    tensors, _ = tensors_of('plain', 'v2', 'small')
    with pytest.raises(ValueError, match=f'^{name} has .* channels'):
        modulated_deform_conv2d(*spoil(*tensors), padding=1, **options)


def test_bias_of_the_first_version_is_refused() -> None:
    tensors, _ = tensors_of('plain', 'v1', 'small')
    with pytest.raises(ValueError, match='bias is True'):
        deform_conv2d(*tensors, padding=1, bias=True)
