"""Is a fused model the same function, and what does it promise besides?"""

import copy
import pickle

import pytest
import torch
from product import ARCHS, FAMILIES
from torch import nn
from torch.nn import functional as F

from backbones import ConvNeXt, FasterNet, InceptionNeXt
from backbones.fast import fused_block
from backbones.fast.fused_block import FusedBlock, FusedLinear
from backbones.fuse import fuse

every_arch = pytest.mark.parametrize(('family', 'arch'), ARCHS, ids=lambda v: v if isinstance(v, str) else v.__name__)
SMALLEST = [(InceptionNeXt, 'atto'), (FasterNet, 't0'), (ConvNeXt, 'tiny_k3_par1_4')]
smallest_arch = pytest.mark.parametrize(
    ('family', 'arch'), SMALLEST, ids=lambda v: v if isinstance(v, str) else v.__name__
)


def test_every_family_is_fused_in_every_way():
    assert {family for family, _ in SMALLEST} == set(FAMILIES)


@pytest.fixture(params=['all products by oneDNN', 'usual products'])
def products(request, monkeypatch):
    """The maps of these tests are small: with the usual limit oneDNN would hardly compute any product."""
    if request.param == 'all products by oneDNN':
        monkeypatch.setattr(fused_block, '_min_product', lambda: 0)


def random_backbone(family, arch, **options):
    """In evaluation mode, with random statistics, gains, biases and layer scales: no part is near to doing nothing."""
    generator = torch.Generator().manual_seed(0)
    model = family(arch, **{'layer_scale_init_value': 1.0, **options}).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(('running_var', 'gamma')) or (tensor.ndim == 1 and name.endswith('weight')):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
        elif name.endswith(('running_mean', 'bias')):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def images(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def assert_same(fused, model, x, bound=1e-4):
    before = x.clone()
    with torch.no_grad():
        got, expected = fused(x), model(x)
    assert torch.equal(x, before)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < bound


@every_arch
def test_outputs_are_those_of_the_model(family, arch, monkeypatch):
    monkeypatch.setattr(fused_block, '_min_product', lambda: 0)
    model = random_backbone(family, arch)
    fused = fuse(model)
    assert_same(fused, model, images(2, 3, 65, 97))
    blocks = [block for stage in fused.stages for block in stage.blocks]
    assert len(blocks) == sum(family.ARCHS[arch].depths)
    assert all(isinstance(block, FusedBlock) for block in blocks)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.usefixtures('products')
@smallest_arch
@pytest.mark.parametrize('size', [(1, 3, 32, 32), (1, 3, 200, 320), (3, 3, 33, 64)], ids=str)
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3)], ids=str)
def test_any_size_and_any_outputs(family, arch, size, out_indices):
    model = random_backbone(family, arch, out_indices=out_indices, out_norm=dict(type='BN'))
    assert_same(fuse(model), model, images(*size))


def test_returned_maps_are_not_changed_afterwards():
    """Blocks overwrite maps; one that was handed out must not be the memory that the next stage works in."""
    model = random_backbone(InceptionNeXt, 'atto')
    fused = fuse(model)
    with torch.no_grad():
        first = fused(images(1, 3, 64, 64))
        kept = [out.clone() for out in first]
        fused(images(1, 3, 64, 64) + 1)
    for out, copied in zip(first, kept, strict=True):
        assert torch.equal(out, copied)
    assert len({out.untyped_storage().data_ptr() for out in first}) == 4


@smallest_arch
@pytest.mark.parametrize('norm', [dict(type='LN'), dict(type='GN', num_groups=2), dict(type='SyncBN')], ids=str)
def test_other_norms_inside_the_network(family, arch, norm):
    model = random_backbone(family, arch, norm_cfg=norm)
    assert_same(fuse(model), model, images(2, 3, 64, 64))


@smallest_arch
def test_the_model_is_not_changed(family, arch):
    model = random_backbone(family, arch)
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    owned = {p.data_ptr() for p in model.parameters()}
    assert not owned & {p.data_ptr() for p in fused.parameters()}
    assert not any(p.requires_grad for p in fused.parameters()) and not fused.training


@pytest.mark.usefixtures('products')
@smallest_arch
def test_state_can_be_saved_and_loaded(family, arch, tmp_path):
    fused = fuse(random_backbone(family, arch))
    torch.save(fused.state_dict(), tmp_path / 'fused.pth')
    fresh = fuse(family(arch, layer_scale_init_value=1.0).eval())
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        fresh(x)  # whatever it computes from its first weights must not outlive them
        fresh.load_state_dict(torch.load(tmp_path / 'fused.pth', weights_only=True))
        for got, expected in zip(fresh(x), fused(x), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.usefixtures('products')
@smallest_arch
def test_wide_maps_in_blocks_of_positions(family, arch, monkeypatch):
    """Maps of test size are below the limit; with a lower one every stage is computed in several blocks."""
    model = random_backbone(family, arch)
    monkeypatch.setattr(fused_block, '_HIDDEN_BYTES', 1)
    assert_same(fuse(model), model, images(2, 3, 200, 312))


@pytest.mark.usefixtures('products')
@smallest_arch
def test_a_used_model_can_be_copied_and_pickled(family, arch):
    fused = fuse(random_backbone(family, arch))
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = fused(x)
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert all(torch.equal(a, b) for a, b in zip(other(x), expected, strict=True))


@pytest.mark.usefixtures('products')
@smallest_arch
def test_autocast_and_inference_mode(family, arch):
    model = random_backbone(family, arch)
    fused = fuse(model)
    x = images(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        assert all(relative_error(a, b) < 1e-4 for a, b in zip(fused(x), expected, strict=True))
        with torch.autocast('cpu', torch.bfloat16):
            assert all(relative_error(a.float(), b) < 0.1 for a, b in zip(fused(x), expected, strict=True))


@pytest.mark.usefixtures('products')
@pytest.mark.parametrize('act', [nn.GELU(), nn.GELU('tanh'), nn.ReLU(), nn.SiLU()], ids=str)
@pytest.mark.parametrize('has_bias', [True, False])
def test_products_with_activation_and_sum(act, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 16, generator=generator), torch.randn(24, generator=generator)
    rows, other = torch.randn(50, 16, generator=generator), torch.randn(50, 24, generator=generator)
    layer = FusedLinear(weight.clone(), bias if has_bias else None).requires_grad_(False)
    product = rows.double() @ weight.double().t() + (bias.double() if has_bias else 0)
    torch.testing.assert_close(layer.linear_act(rows, act).double(), act(product), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.linear_plus(rows, other).double(), other + product, atol=1e-5, rtol=1e-5)
    layer.weight.mul_(2)
    torch.testing.assert_close(layer.linear_plus(rows, other - other), F.linear(rows, 2 * weight, layer.bias))


@smallest_arch
@pytest.mark.parametrize(('device', 'number'), [('cpu', 0), ('meta', 2)], ids=['no image', 'no values'])
def test_no_image_and_no_values(family, arch, device, number):
    model = random_backbone(family, arch)
    x = torch.zeros(number, 3, 64, 96)
    with torch.no_grad():
        expected = [out.shape for out in model(x)]
        assert [out.shape for out in fuse(model.to(device))(x.to(device))] == expected


@smallest_arch
@pytest.mark.parametrize('scale', [0.5, None], ids=['layer scale', 'no layer scale'])
def test_mixed_precision_is_that_of_the_model(family, arch, scale):
    """Same types, and about as far from full precision as the model itself."""
    model = random_backbone(family, arch, layer_scale_init_value=scale)
    fused, x = fuse(model), images(2, 3, 64, 96)
    with torch.no_grad():
        exact = model.double()(x.double())
        model.float()
        with torch.autocast('cpu', torch.bfloat16):
            plain, got = model(x), fused(x)
    assert [out.dtype for out in got] == [out.dtype for out in plain]
    for a, b, reference in zip(got, plain, exact, strict=True):
        assert relative_error(a.double(), reference) < 1.5 * relative_error(b.double(), reference)


@pytest.mark.parametrize('min_product', [0, float('inf')], ids=['oneDNN', 'usual'])
@pytest.mark.parametrize('size', [(1, 3, 32, 32), (2, 3, 200, 320)], ids=str)
@smallest_arch
def test_gradients_are_refused(family, arch, size, min_product, monkeypatch):
    monkeypatch.setattr(fused_block, '_min_product', lambda: min_product)
    fused, x = fuse(random_backbone(family, arch)), images(*size)
    fused(x)  # nothing asks for a gradient
    with pytest.raises(ValueError, match='its input requires a gradient') as caught:
        fused(x.requires_grad_())
    assert len(str(caught.value).split('\n')) == 2 and 'torch.no_grad()' in str(caught.value)
    with torch.no_grad():
        fused(x)
    with torch.inference_mode():
        fused(x)
    for parameter in fused.parameters():
        parameter.requires_grad_()
        with pytest.raises(ValueError, match='a parameter requires a gradient'):
            fused(x.detach())
        parameter.requires_grad_(False)
    fused(x.detach())


@pytest.mark.parametrize('size', [(1, 256, 8, 8), (1, 256, 64, 64)], ids=str)
def test_parts_of_a_fused_model_refuse_gradients(size):
    fused = fuse(nn.ModuleDict({'head': nn.Sequential(nn.Conv2d(256, 256, 3, padding=1))}).eval())
    x = images(*size)
    fused['head'](x)
    with pytest.raises(ValueError, match='its input requires a gradient'):
        fused['head'](x.requires_grad_())
    fused['head'].requires_grad_()
    with pytest.raises(ValueError, match='a parameter requires a gradient'):
        fused['head'](x.detach())


def test_a_part_that_stays_refuses_gradients_as_well():
    """Its block norm makes FasterNet's blocks stay as they are."""
    fused = fuse(random_backbone(FasterNet, 't0', norm_cfg=dict(type='GN', num_groups=2)))
    with pytest.raises(ValueError, match='its input requires a gradient'):
        fused(images(1, 3, 32, 32).requires_grad_())


@pytest.mark.parametrize(('capability', 'faster'), [('AVX512', True), ('AVX2', False), ('DEFAULT', False)])
def test_products_ask_the_processor(capability, faster, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    layer = FusedLinear(torch.zeros(256, 256), None)
    assert layer.is_faster(torch.zeros(512, 256)) == (faster and torch.backends.mkldnn.is_available())
    assert not layer.is_faster(torch.zeros(511, 256))


def test_further_rewritings_see_a_copy():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()

    def rewrite(module):
        module[0] = nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
        module[1] = nn.Identity()

    fused = fuse(model, rewrites=(rewrite,))
    assert isinstance(fused[1], nn.Identity) and isinstance(model[1], nn.BatchNorm2d)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match='training mode') as caught:
        fuse(InceptionNeXt('atto'))
    assert len(str(caught.value).split('\n')) == 2
    model = nn.Sequential(InceptionNeXt('atto')).eval()
    model[0].stages[1].train()
    with pytest.raises(ValueError, match=r"'0\.stages\.1'"):
        fuse(model)


def test_backbones_inside_another_module_are_found():
    inner = random_backbone(InceptionNeXt, 'atto', out_indices=(3,))

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = inner

        def forward(self, x):
            return self.backbone(x)

    model = Wrapper().eval()
    fused = fuse(model)
    assert isinstance(fused.backbone.stages[0].blocks[0], FusedBlock)
    assert_same(fused, model, images(1, 3, 64, 64))


@pytest.mark.usefixtures('products')
@smallest_arch
def test_recorded_graphs_are_the_same_function(family, arch):
    """Export and compilation see whole maps instead of rows, and nothing that works in place."""
    fused = fuse(random_backbone(family, arch))
    x = images(1, 3, 64, 96)
    program = torch.export.export(fused, (x,))
    with torch.no_grad():
        for got, expected in zip(program.module()(x), fused(x), strict=True):
            assert relative_error(got, expected) < 1e-5
    assert 'addmm_' not in program.graph_module.code
    assert 'mkldnn' not in program.graph_module.code


@smallest_arch
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(family, arch, dtype):
    model = random_backbone(family, arch).to(dtype)
    assert_same(fuse(model), model, images(1, 3, 64, 64).to(dtype), bound=1e-9 if dtype is torch.float64 else 0.1)
