"""Does Winograd's algorithm compute the same convolution, with fewer multiplications, wherever it is used?"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from backbones.fast import winograd
from backbones.fast.winograd import WinogradConv2d, use_winograd
from backbones.fuse import fuse

# Images, input and output channels, height, width.
SHAPES = [
    (1, 256, 256, 48, 48),
    (1, 384, 512, 45, 46),
    (2, 256, 320, 32, 43),
    (7, 300, 256, 16, 24),
    (3, 256, 256, 47, 61),
]


@pytest.fixture(autouse=True)
def same_limits_on_every_processor(monkeypatch):
    monkeypatch.setattr(winograd, '_limits', lambda: winograd._LIMITS['AVX512'])


@pytest.fixture(params=['at once', 'in bands'])
def holding(request, monkeypatch):
    """Maps of this size are computed at once with the usual limits."""
    if request.param == 'in bands':
        monkeypatch.setattr(winograd, '_SUM_BYTES', 1 << 20)
        monkeypatch.setattr(winograd, '_INPUT_BYTES', 1 << 19)


def pair(c=256, o=256, *, bias=True):
    torch.manual_seed(0)
    conv = nn.Conv2d(c, o, 3, padding=1, bias=bias).requires_grad_(False).eval()
    return conv, WinogradConv2d(conv)


def images(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def flops(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


def largest_error(got, expected):
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


every_shape = pytest.mark.parametrize('shape', SHAPES, ids=str)
with_and_without_bias = pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])


@pytest.mark.usefixtures('holding')
@with_and_without_bias
@every_shape
def test_equals_the_sum_over_the_window(shape, bias):
    n, c, o, h, w = shape
    conv, in_tiles = pair(c, o, bias=bias)
    x = images(n, c, h, w)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, padding=1)
    assert largest_error(in_tiles(x), expected) < 1e-5
    assert largest_error(in_tiles(x.contiguous(memory_format=torch.channels_last)), expected) < 1e-5
    assert flops(in_tiles, x) < 0.4 * flops(conv, x)  # it was computed in tiles


@pytest.mark.usefixtures('holding')
@with_and_without_bias
@every_shape
def test_gradients_equal_those_of_the_sum_over_the_window(shape, bias):
    n, c, o, h, w = shape
    conv, _ = pair(c, o, bias=bias)
    x, upstream = images(n, c, h, w), images(n, o, h, w)
    expected = gradients(conv.double(), x.double(), upstream.double())
    _, in_tiles = pair(c, o, bias=bias)
    with FlopCounterMode(display=False) as counter:
        got = gradients(in_tiles, x, upstream)
    assert len(got) == len(expected) == 2 + bias
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and a.is_contiguous()
        assert largest_error(a, b) < 1e-5
    assert counter.get_total_flops() < 0.45 * 3 * flops(pair(c, o)[0], x)


def gradients(module, x, upstream):
    x.requires_grad_()
    parameters = list(module.requires_grad_().parameters())
    module(x).backward(upstream)
    return [tensor.grad for tensor in (x, *parameters)]


def test_only_the_gradients_that_are_asked_for():
    _, in_tiles = pair()
    x = images(1, 256, 48, 48)
    in_tiles.requires_grad_()
    forward = flops(in_tiles, x)
    with FlopCounterMode(display=False) as counter:
        in_tiles(x).sum().backward()
    assert x.grad is None and in_tiles.weight.grad is not None and in_tiles.bias.grad is not None
    assert counter.get_total_flops() < 2.2 * forward  # forward and gradient of the weights
    in_tiles.requires_grad_(False).zero_grad()
    in_tiles(x.requires_grad_()).sum().backward()
    assert x.grad is not None and in_tiles.weight.grad is None


@pytest.mark.parametrize('of_weight', [True, False], ids=['weight', 'frozen weight'])
@pytest.mark.parametrize('of_bias', [True, False], ids=['bias', 'frozen bias'])
@pytest.mark.parametrize('of_x', [True, False], ids=['input', 'frozen input'])
def test_gradients_of_what_is_not_frozen(of_x, of_weight, of_bias):
    found = []
    for module in pair():
        x = images(1, 256, 48, 48).requires_grad_(of_x)
        module.weight, module.bias = (nn.Parameter(p.detach().clone()) for p in (module.weight, module.bias))
        module.weight.requires_grad_(of_weight)
        module.bias.requires_grad_(of_bias)
        out = module(x)
        assert out.requires_grad == (of_x or of_weight or of_bias)
        if out.requires_grad:
            out.square().mean().backward()
        found.append([tensor.grad for tensor in (x, module.weight, module.bias)])
    for expected, got, asked in zip(*found, (of_x, of_weight, of_bias), strict=True):
        assert (got is not None) == (expected is not None) == asked
        if asked:
            assert largest_error(got, expected.double()) < 1e-5


@pytest.mark.usefixtures('all_in_tiles')
def test_no_image_no_values_and_no_tiles():
    conv, in_tiles = (module.requires_grad_() for module in pair(16, 16))
    for size in ((0, 16, 24, 24), (2, 16, 0, 24)):
        x = torch.zeros(size, requires_grad=True)
        try:
            expected = conv(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                in_tiles(x)
            continue
        assert in_tiles(x).shape == expected.shape
        in_tiles(x).sum().backward()
        assert not in_tiles.bias.grad.any()
    on_meta = in_tiles.to('meta')
    out = on_meta(torch.zeros(2, 16, 24, 24, device='meta', requires_grad=True))
    assert out.is_meta and out.shape == (2, 16, 24, 24)
    out.sum().backward()


@pytest.mark.usefixtures('all_in_tiles')
@pytest.mark.parametrize('grad', [True, False])
def test_tensors_without_values(grad):
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        in_tiles = WinogradConv2d(nn.Conv2d(16, 16, 3, padding=1))
        assert in_tiles(torch.zeros(2, 16, 24, 24)).shape == (2, 16, 24, 24)


def test_a_weight_that_two_convolutions_share():
    first, second = (nn.Conv2d(256, 256, 3, padding=1) for _ in range(2))
    second.weight = first.weight
    plain = nn.Sequential(first, second)
    model = copy.deepcopy(plain)
    assert use_winograd(model) == 2 and model[0].weight is model[1].weight
    x = images(1, 256, 48, 48)
    for module in (plain, model):
        module(x).square().mean().backward()
    assert largest_error(model[0].weight.grad, plain[0].weight.grad.double()) < 1e-5
    with torch.no_grad():
        assert largest_error(model(x), plain(x).double()) < 1e-5
        for module in (plain, model):
            module[0].weight.data.mul_(-0.5)
        assert largest_error(model(x), plain(x).double()) < 1e-5


@pytest.mark.parametrize(('capability', 'tiles'), [('AVX512', 128), ('AVX2', 256), ('DEFAULT', 256)])
def test_limits_ask_the_processor(capability, tiles, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    _, in_tiles = pair()
    assert in_tiles.is_faster(torch.zeros(tiles // 64, 256, 32, 32))
    assert not in_tiles.is_faster(torch.zeros(tiles // 64 - 1, 256, 32, 32))


def test_no_second_derivatives():
    _, in_tiles = pair()
    x = images(1, 256, 48, 48).requires_grad_()
    (of_x,) = torch.autograd.grad(in_tiles(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        of_x.sum().backward()


def test_layers_are_replaced_in_place():
    model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 8, 1))
    parameters = dict(model.named_parameters())
    assert use_winograd(model) == 1
    assert [type(layer) for layer in model] == [WinogradConv2d, nn.ReLU, nn.Conv2d] and model.training
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert use_winograd(model) == 0


def test_transforms_are_exact():
    """In FP64 only the choice of points remains: every output of every single weight and input must be right."""
    back, weights, inputs = (torch.from_numpy(matrix) for matrix in winograd._transforms())
    for i in range(6):
        for k in range(3):
            x, w = torch.eye(6, dtype=torch.float64)[i], torch.eye(3, dtype=torch.float64)[k]
            expected = F.conv1d(x.view(1, 1, 6), w.view(1, 1, 3)).flatten()
            torch.testing.assert_close(back @ ((weights @ w) * (inputs @ x)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize('size', [(1, 256, 12, 12), (40, 256, 7, 7), (100, 256, 14, 14)], ids=str)
def test_small_maps_take_the_usual_way(size):
    conv, in_tiles = pair()
    x = images(*size)
    assert flops(in_tiles, x) == flops(conv, x)
    assert torch.equal(in_tiles(x), conv(x))


def hooked(conv):
    conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return conv


NOT_SUITED = {
    'stride': nn.Conv2d(256, 256, 3, padding=1, stride=2),
    'dilation': nn.Conv2d(256, 256, 3, padding=2, dilation=2),
    'padding': nn.Conv2d(256, 256, 3),
    'reflected': nn.Conv2d(256, 256, 3, padding=1, padding_mode='reflect'),
    'groups': nn.Conv2d(512, 512, 3, padding=1, groups=2),
    'window': nn.Conv2d(256, 256, (3, 5), padding=1),
    'few channels': nn.Conv2d(128, 256, 3, padding=1),
    'transposed': nn.ConvTranspose2d(256, 256, 3, padding=1),
    'hook': hooked(nn.Conv2d(256, 256, 3, padding=1)),
    'parametrized': parametrizations.weight_norm(nn.Conv2d(256, 256, 3, padding=1)),
    'subclass': type('Other', (nn.Conv2d,), {})(256, 256, 3, padding=1),
}


@pytest.mark.parametrize('kind', NOT_SUITED)
def test_other_convolutions_stay(kind):
    model = nn.Sequential(NOT_SUITED[kind], nn.Conv2d(256, 256, 3, padding=1)).eval()
    fused = fuse(model)
    assert type(fused[0]) is type(NOT_SUITED[kind])
    assert type(fused[1]) is WinogradConv2d


def test_a_layer_that_is_used_twice_stays_one():
    shared = nn.Conv2d(256, 256, 3, padding=1)
    fused = fuse(nn.ModuleDict({'a': nn.Sequential(shared), 'b': nn.Sequential(shared, nn.ReLU())}).eval())
    assert type(fused['a'][0]) is WinogradConv2d
    assert fused['a'][0] is fused['b'][0]


def test_weights_may_change():
    conv, in_tiles = pair()
    x = images(1, 256, 48, 48)
    in_tiles(x)
    with torch.no_grad():
        in_tiles.weight.mul_(-2)
    assert largest_error(in_tiles(x), conv(x)) < 1e-5  # it is the same parameter
    in_tiles.load_state_dict({key: tensor * 3 for key, tensor in conv.state_dict().items()})
    assert largest_error(in_tiles(x), conv(x)) < 1e-5
    assert in_tiles.state_dict().keys() == conv.state_dict().keys()


def test_a_used_layer_can_be_copied_and_pickled():
    _, in_tiles = pair()
    x = images(1, 256, 48, 48)
    expected = in_tiles(x)
    stored = pickle.dumps(in_tiles)
    assert len(stored) < 1.1 * in_tiles.weight.nbytes + 10_000
    for other in (copy.deepcopy(in_tiles), pickle.loads(stored)):
        assert torch.equal(other(x), expected)


@pytest.mark.usefixtures('all_in_tiles')
def test_autocast():
    conv, in_tiles = pair(16, 16)
    x = images(1, 16, 12, 12)
    assert not torch.equal(in_tiles(x), conv(x))  # it is in tiles
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(in_tiles(x), conv(x))


def test_gradients_and_inference_mode():
    conv, in_tiles = pair()
    x = images(1, 256, 48, 48)
    with torch.inference_mode():
        assert largest_error(in_tiles(x), conv(x)) < 1e-5
    x.requires_grad_()
    in_tiles(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize('size', [(0, 256, 48, 48), (256, 48, 48)], ids=['no image', 'without batch'])
def test_unusual_inputs_are_those_of_pytorch(size):
    conv, in_tiles = pair()
    assert torch.equal(in_tiles(images(*size)), conv(images(*size)))


def test_recorded_graphs():
    conv, in_tiles = pair()
    x = images(1, 256, 48, 48)
    program = torch.export.export(in_tiles, (x,))
    calls = [node.target for node in program.graph.nodes if node.op == 'call_function']
    assert calls == [torch.ops.aten.conv2d.default]
    assert torch.equal(torch.jit.trace(in_tiles, x, check_trace=False)(x), conv(x))
