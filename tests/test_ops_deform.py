"""Does deformable convolution, called as models call it, do what its definition says?"""

import sys

import numpy as np
import pytest
import torch
from deform_cases import (
    GEOMETRIES,
    OFFSETS,
    VERSIONS,
    arrays_of,
    deform_conv_by_definition,
    gradients_by_definition,
    tensors_of,
)
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


CASES = [(name, version, offset) for name in GEOMETRIES for version in VERSIONS for offset in OFFSETS]


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
    expected = deform_conv_by_definition(*arrays_of(version, tensors), *geometry)
    np.testing.assert_allclose(call(version, tensors, geometry).detach().cpu(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('name', 'version', 'offset'), CASES)
def test_gradients_are_those_of_mmcv(name: str, version: str, offset: str, device: str) -> None:
    tensors, geometry = tensors_of(name, version, offset, device)
    result = call(version, tensors, geometry)
    weights = torch.arange(result.numel(), dtype=result.dtype, device=device).view_as(result).sin()
    result.backward(weights)
    expected = gradients_by_definition(*arrays_of(version, tensors), weights.cpu().numpy(), *geometry)
    for tensor, gradient in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(tensor.grad.cpu(), gradient, rtol=1e-9, atol=1e-9)


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
        results.append([result.detach(), *(tensor.grad for tensor in tensors)])
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


def test_a_batch_must_be_a_multiple_of_the_step() -> None:
    module = DeformConv2dPack(2, 2, 3, padding=1, im2col_step=2)
    for num in (0, 1, 2, 4):
        assert module(torch.zeros(num, 2, 5, 5)).shape == (num, 2, 5, 5)
    with pytest.raises(AssertionError, match='3 images, im2col_step 2: batch size must be divisible by im2col_step\n'):
        module(torch.zeros(3, 2, 5, 5))


def first_numbers(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """Read each image's memory from its start, as a kernel does that knows the output's size alone."""
    channels = tensor.shape[1]
    return torch.stack([image.reshape(-1)[: channels * size[0] * size[1]].view(channels, *size) for image in tensor])


@pytest.mark.parametrize('name', GEOMETRIES)
def test_a_larger_offset_map_is_read_as_flat_memory(name: str) -> None:
    tensors, geometry = tensors_of(name, 'v2_bias', 'small')
    size = tuple(tensors[1].shape[2:])
    rng = torch.Generator().manual_seed(1)
    results = []
    large = [torch.randn(*t.shape[:2], size[0] + 2, size[1] + 3, generator=rng).double() for t in tensors[1:3]]
    for read in (lambda tensor, size: tensor, first_numbers):
        leaves = [leaf.detach().requires_grad_() for leaf in (tensors[0], *large, *tensors[3:])]
        offset, mask = (read(leaf, size) for leaf in leaves[1:3])
        result = modulated_deform_conv2d(leaves[0], offset, mask, *leaves[3:], *geometry)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
        results.append([result.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results)
    assert results[0][2].count_nonzero() < results[0][2].numel()  # what is not read has no gradient


def test_a_smaller_offset_map_is_refused() -> None:
    x, offset, mask, weight = tensors_of('plain', 'v2', 'small')[0]
    with pytest.raises(ValueError, match=r'^offset is 4 x 6 pixels, but the output is 5 x 6\n'):
        modulated_deform_conv2d(x, offset[:, :, 1:], mask, weight, padding=1)
    with pytest.raises(ValueError, match=r'^mask is 4 x 6 pixels, but the output is 5 x 6\n'):
        modulated_deform_conv2d(x, offset, mask[:, :, 1:], weight, padding=1)


def test_the_first_version_refuses_an_offset_map_of_another_size() -> None:
    x, offset, weight = tensors_of('plain', 'v1', 'small')[0]
    with pytest.raises(ValueError, match=r'^offset is 5 x 6 pixels, but the output is 3 x 4\n'):
        deform_conv2d(x, offset, weight)


def test_an_input_smaller_than_the_kernel_is_named() -> None:
    x, offset, weight = tensors_of('plain', 'v1', 'small')[0]
    with pytest.raises(ValueError, match=r'^convolution input is too small: 5 x 6 pixels'):
        deform_conv2d(x, offset, weight, dilation=3)


def test_a_module_that_bound_the_name_early_is_served_too() -> None:
    # The switchable convolution imports deform_conv2d while mmcv.ops is being imported.
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    SAConv2d(2, 2, 3, padding=1, use_deform=True)(x).sum().backward()
    module = sys.modules['mmcv.ops.saconv']
    assert module.deform_conv2d is deform_conv2d and torch.isfinite(x.grad).all()


def test_deform_conv_compiles_in_one_graph() -> None:
    tensors, geometry = tensors_of('plain', 'v2_bias', 'whole')
    compiled = torch.compile(modulated_deform_conv2d, backend='aot_eager', fullgraph=True)
    results = []
    for function in (modulated_deform_conv2d, compiled):
        leaves = [tensor.detach().float().requires_grad_() for tensor in tensors]
        result = function(*leaves, *geometry)
        result.sin().sum().backward()
        results.append([result.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results)


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
