"""Does the lean MLP compute the same as the plain one, alone and in every network, and does it store less?"""

import inspect

import pytest
import torch
from product import ARCHS
from torch import nn
from torch.nn import functional as F

from backbones import ConvNeXt, FasterNet, InceptionNeXt
from backbones.fast import lean_mlp as lean
from backbones.fast.lean_mlp import lean_mlp

LAYERS = {'linear': lambda i, o: nn.Linear(i, o), 'convolution': lambda i, o: nn.Conv2d(i, o, 1)}
FORMATS = {'first': torch.contiguous_format, 'last': torch.channels_last}
LEAN = [(family, arch) for family, arch in ARCHS if 'lean_mlp' in inspect.signature(family).parameters]
# A family's own narrowest network with both kinds of stages: up to 128 channels, and more.
SMALL = [
    (InceptionNeXt, dict(dims=(16, 32, 144, 160), depths=(1, 2, 2, 1))),
    (ConvNeXt, dict(dims=(16, 32, 144, 160), depths=(1, 2, 2, 1), kernel=3)),
]
small = pytest.mark.parametrize(('family', 'arch'), SMALL, ids=['InceptionNeXt', 'ConvNeXt'])
OPTIONS = dict(out_norm=dict(type='BN'), layer_scale_init_value=0.5, drop_path_rate=0.3)


def test_every_family_that_can_be_lean_is_tried_in_every_way():
    assert {family for family, _ in SMALL} == {family for family, _ in LEAN}


def plain_mlp(x, fc1, fc2, gamma):
    hidden = torch.einsum('nchw,dc->nhwd', x, fc1.weight.flatten(1)) + fc1.bias
    out = torch.einsum('nhwd,cd->nchw', F.gelu(hidden), fc2.weight.flatten(1)) + fc2.bias.view(-1, 1, 1)
    return out if gamma is None else out * gamma.view(-1, 1, 1)


def parts(layer, dtype=torch.float32, with_gamma=True):
    torch.manual_seed(0)
    fc1, fc2 = LAYERS[layer](8, 32).to(dtype), LAYERS[layer](32, 8).to(dtype)
    gamma = nn.Parameter(torch.rand(8, dtype=dtype) + 0.5) if with_gamma else None
    return fc1, fc2, gamma


@pytest.fixture(params=[1, 17, 10**6], ids=lambda columns: f'{columns} positions')
def at_a_time(request, monkeypatch):
    monkeypatch.setattr(lean._Parts, '_num_columns', lambda self, maps: min(request.param, maps[0, 0].numel()))


@pytest.fixture(params=[False, True], ids=['recomputed', 'kept'])
def kept(request, monkeypatch):
    monkeypatch.setattr(lean, '_RECOMPUTED_CHANNELS', 0 if request.param else 10**6)
    return request.param


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('with_gamma', [True, False])
@pytest.mark.parametrize('layout', FORMATS)
def test_output_and_gradients(layer, with_gamma, layout, kept, at_a_time):
    fc1, fc2, gamma = parts(layer, torch.float64, with_gamma)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64).to(memory_format=FORMATS[layout]).requires_grad_()
    inputs = [x, *fc1.parameters(), *fc2.parameters(), *([gamma] if with_gamma else [])]
    out, expected = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma), plain_mlp(x, fc1, fc2, gamma)
    assert out.is_contiguous(memory_format=FORMATS[layout])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    got, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected))
    assert len(got) == 5 + with_gamma
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences(kept):
    fc1, fc2, gamma = parts('linear', torch.float64)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: lean_mlp(y, fc1=fc1, fc2=fc2, gamma=gamma), (x,))


def test_maps_may_be_views(kept):
    fc1, fc2, gamma = parts('convolution')
    wide = torch.randn(2, 16, 6, 8)
    x = wide[:, 4:12, :, ::2]
    torch.testing.assert_close(lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma), plain_mlp(x, fc1, fc2, gamma))
    # The gradient of a mean is one number, expanded: no memory format at all.
    x = x.clone().requires_grad_()
    grads = [torch.autograd.grad(mlp.mean(), x)[0] for mlp in
             (lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma), plain_mlp(x, fc1, fc2, gamma))]  # fmt: skip
    torch.testing.assert_close(*grads)


def test_a_second_backward_pass_gives_the_same(kept):
    fc1, fc2, gamma = parts('linear')
    loss = lean_mlp(torch.randn(1, 8, 4, 4), fc1=fc1, fc2=fc2, gamma=gamma).square().mean()
    first, second = (torch.autograd.grad(loss, fc1.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 0


def test_mixed_precision(kept):
    fc1, fc2, gamma = parts('linear')
    x = torch.randn(2, 8, 6, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma)
        out.float().square().mean().backward()
    assert out.dtype is torch.float32  # as a plain product with a layer scale is
    assert fc1.weight.grad.dtype is gamma.grad.dtype is torch.float32
    torch.testing.assert_close(out.float(), plain_mlp(x, fc1, fc2, gamma), rtol=0.05, atol=0.02)


@pytest.mark.parametrize('with_gamma', [True, False])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_no_image_and_no_values(device, with_gamma, kept):
    fc1, fc2, gamma = parts('convolution', with_gamma=with_gamma)
    gamma = None if gamma is None else nn.Parameter(gamma.detach().to(device))
    x = torch.randn(0 if device == 'cpu' else 2, 8, 5, 7, device=device, requires_grad=True)
    out = lean_mlp(x, fc1=fc1.to(device), fc2=fc2.to(device), gamma=gamma)
    assert out.shape == x.shape and out.device == x.device
    out.sum().backward()
    assert x.grad.shape == x.shape and fc1.weight.grad.shape == fc1.weight.shape
    if device == 'cpu':
        assert not fc1.weight.grad.any() and not fc2.bias.grad.any()


def test_no_second_derivatives(kept):
    fc1, fc2, gamma = parts('linear')
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    loss = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma).square().sum()
    (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        of_x.sum().backward()


def test_what_is_kept(kept):
    fc1, fc2, gamma = parts('linear')
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma)
    weights = sum(p.numel() for layer in (fc1, fc2) for p in layer.parameters()) + gamma.numel()
    assert sum(saved) == x.numel() * (5 if kept else 1) + weights


def build(family, arch, state=None, **options):
    model = family(arch, **{**OPTIONS, **options}).double().train()
    if state is not None:
        model.load_state_dict(state)
    return model


def step(model, x):
    """Maps, gradients and statistics of one training step."""
    torch.manual_seed(1)  # of drop path
    outs = model(x)
    sum(out.float().pow(3).mean() for out in outs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outs, gradients, dict(model.named_buffers()), torch.rand(1)


def assert_same_step(got, wanted, rtol=1e-6):
    (outs, gradients, statistics, number), (others, other_gradients, other_statistics, other_number) = got, wanted
    assert torch.equal(number, other_number), 'the random numbers that follow differ'
    assert len(outs) == len(others) and gradients.keys() == other_gradients.keys() and len(gradients) > 15
    for a, b in zip(outs, others, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
    # The gradient of a bias before a batch norm is 0: what is left of it is measured by the others.
    scale = max(gradient.abs().max() for gradient in other_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, other_gradients[name], rtol=rtol, atol=rtol * scale.item() * 1e-3, msg=name
        )
    for name, value in statistics.items():
        torch.testing.assert_close(value, other_statistics[name], rtol=rtol, atol=rtol, msg=name)


def images(layout='first'):
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=FORMATS[layout])


@pytest.mark.parametrize(('family', 'arch'), LEAN, ids=lambda value: getattr(value, '__name__', value))
def test_every_network_trains_the_same(family, arch):
    plain = family(arch, out_indices=(0, 1), **OPTIONS)
    lean_one = family(arch, out_indices=(0, 1), lean_mlp=True, **OPTIONS)
    assert list(lean_one.state_dict()) == list(plain.state_dict())
    models = build(family, arch, plain.state_dict(), out_indices=(0, 1)), lean_one.double().train()
    models[1].load_state_dict(plain.state_dict())
    assert_same_step(*(step(model, images()) for model in reversed(models)))


@small
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('weights', FORMATS)
def test_options_and_memory_formats(family, arch, with_cp, layout, weights):
    plain = build(family, arch)
    other = build(family, arch, plain.state_dict(), lean_mlp=True, with_cp=with_cp)
    other.to(memory_format=FORMATS[weights])
    assert_same_step(step(other, images(layout)), step(plain, images()))


@small
def test_without_layer_scale_and_with_frozen_stages(family, arch):
    options = dict(layer_scale_init_value=None, frozen_stages=1)
    plain = build(family, arch, **options)
    other = build(family, arch, plain.state_dict(), lean_mlp=True, **options)
    assert_same_step(step(other, images()), step(plain, images()))
    assert not any(p.requires_grad for p in other.stages[0].parameters())


@small
def test_network_in_mixed_precision(family, arch):
    """It is as far from full precision as the plain network in mixed precision is."""
    options = dict(out_norm=None, out_indices=(0, 1, 2))
    exact = build(family, arch, **options)
    plain, other = (build(family, arch, exact.state_dict(), lean_mlp=lean, **options).float() for lean in (False, True))
    wanted = step(exact, images())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        steps = [step(model, images().float()) for model in (plain, other)]
    for outs in zip(steps[0][0], steps[1][0], strict=True):
        assert outs[0].dtype == outs[1].dtype
    errors = [[distance(a, b) for a, b in zip(found[0], wanted[0], strict=True)] for found in steps]
    for found, own in zip(steps, errors, strict=True):
        own += [distance(found[1][name], wanted[1][name]) for name in wanted[1] if '.mlp.' in name]
    assert len(errors[0]) == 3 + 4 * 5 and max(errors[0]) < 0.2
    assert all(lean_error < 2 * error + 0.01 for error, lean_error in zip(*errors, strict=True)), errors


def distance(got, wanted):
    return ((got.double() - wanted).norm() / wanted.norm()).item()


@small
@pytest.mark.parametrize('lean_mlp', [False, True])
def test_compiled_as_one_graph(family, arch, lean_mlp):
    torch.compiler.reset()
    plain = build(family, arch)
    compiled = torch.compile(
        build(family, arch, plain.state_dict(), lean_mlp=lean_mlp), backend='eager', fullgraph=True
    )
    outs, gradients, *rest = step(compiled, images())
    gradients = {name.removeprefix('_orig_mod.'): value for name, value in gradients.items()}
    statistics = {name.removeprefix('_orig_mod.'): value for name, value in rest[0].items()}
    assert_same_step((outs, gradients, statistics, rest[1]), step(plain, images()))


@small
def test_inference(family, arch):
    plain = build(family, arch).eval()
    other = build(family, arch, plain.state_dict(), lean_mlp=True).eval()
    with torch.no_grad():
        for got, wanted in zip(other(images()), plain(images()), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_fasternet_has_none():
    with pytest.raises(TypeError, match='lean_mlp'):
        FasterNet('t0', lean_mlp=True)
    with pytest.raises(ValueError, match='FasterNet has no lean MLP') as caught:
        FasterNet('t0').use_lean_mlp()
    assert len(str(caught.value).split('\n')) == 2
