"""Do layers that use transformed copies of their weights notice every way of changing the weights?"""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backbones import InceptionNeXt
from backbones.fast import fused_block, winograd
from backbones.fast.fused_block import FusedLinear
from backbones.fast.winograd import WinogradConv2d
from backbones.fuse import fuse


def fused_adamw(module):
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_().grad = torch.randn_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()
    module.zero_grad()
    module.requires_grad_(False)


def ema_swap(module):
    """As MMEngine's EMAHook does it."""
    averages = copy.deepcopy(module)
    for parameter in averages.parameters():
        parameter.data.mul_(-0.5)
    for average, parameter in zip(averages.parameters(), module.parameters(), strict=True):
        kept = average.data.clone()
        average.data.copy_(parameter.data)
        parameter.data.copy_(kept)


@torch.no_grad()
def in_place(module):
    for parameter in module.parameters():
        parameter.copy_(-0.5 * parameter)


@torch.inference_mode()
def in_inference_mode(module):
    for parameter in module.parameters():
        parameter.mul_(-0.5)


def through_data(module):
    for parameter in module.parameters():
        parameter.data.mul_(-0.5)


def one_number(module):
    for parameter in module.parameters():
        parameter.data[(-1,) * parameter.dim()] += 100.0


def two_exchanged(module):
    """A sum over the weights would not see it."""
    for parameter in module.parameters():
        first, last = (parameter.data[(index,) * parameter.dim()] for index in (0, -1))
        kept = first.clone()
        first.copy_(last)
        last.copy_(kept)


def data_assigned(module):
    for parameter in module.parameters():
        parameter.data = -0.5 * parameter.data


@torch.no_grad()
def storage_set(module):
    for parameter in module.parameters():
        parameter.set_(-0.5 * parameter)


def parameter_replaced(module):
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(-0.5 * parameter.detach(), requires_grad=False))


def state_loaded(module):
    module.load_state_dict({key: -0.5 * value for key, value in module.state_dict().items()})


def state_assigned(module):
    module.load_state_dict({key: -0.5 * value for key, value in module.state_dict().items()}, assign=True)
    module.requires_grad_(False)


def through_numpy(module):
    for parameter in module.parameters():
        parameter.numpy()[...] *= -0.5


def shared_memory(module):
    views = [parameter.detach() for parameter in module.share_memory().parameters()]
    for view in views:
        view.data.mul_(-0.5)


WRITES = [
    fused_adamw, ema_swap, in_place, in_inference_mode, through_data, one_number, two_exchanged, data_assigned,
    storage_set, parameter_replaced, state_loaded, state_assigned, through_numpy, shared_memory,
]  # fmt: skip
every_write = pytest.mark.parametrize('write', WRITES, ids=lambda write: write.__name__)
MODES = {'no_grad': torch.no_grad, 'inference_mode': torch.inference_mode}
every_mode = pytest.mark.parametrize('mode', MODES)


@pytest.fixture(autouse=True)
def fast_forms_of_everything(monkeypatch, all_in_tiles):
    monkeypatch.setattr(fused_block, '_min_product', lambda: 0)


def numbers(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def convolution():
    torch.manual_seed(0)
    return WinogradConv2d(nn.Conv2d(16, 24, 3, padding=1).requires_grad_(False).eval())


def largest_error(got, expected):
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


@every_mode
@every_write
def test_convolution(write, mode):
    conv, x = convolution(), numbers(1, 16, 24, 24)
    with MODES[mode]():
        before = conv(x)
    write(conv)
    with MODES[mode]():
        after = conv(x)
        expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    assert largest_error(after, expected) < 1e-5
    assert not torch.equal(before, after)


@every_write
def test_linear_layer(write):
    torch.manual_seed(0)
    layer = FusedLinear(torch.randn(24, 16), torch.randn(24)).requires_grad_(False)
    rows, other = numbers(50, 16), numbers(50, 24)
    with torch.no_grad():
        before = layer.linear_act(rows, nn.GELU()), layer.linear_plus(rows, other)
        write(layer)
        after = layer.linear_act(rows, nn.GELU()), layer.linear_plus(rows, other)
        product = F.linear(rows.double(), layer.weight.double(), layer.bias.double())
    for got, old, expected in zip(after, before, (F.gelu(product), other + product), strict=True):
        assert largest_error(got, expected) < 1e-5
        assert not torch.equal(got, old)


@every_write
def test_fused_model(write):
    torch.manual_seed(0)
    arch = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
    backbone = InceptionNeXt(arch, layer_scale_init_value=1.0, out_indices=(3,))
    fused = fuse(nn.Sequential(backbone, nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1)])).eval())

    def run(model):
        (feature,) = model[0](x)
        return model[1][0](feature)

    x = numbers(1, 3, 64, 64)
    assert isinstance(fused[1][0], WinogradConv2d)
    with torch.no_grad():
        before = run(fused)
        write(fused)
        after = run(fused)
        assert torch.equal(after, run(copy.deepcopy(fused)))  # a copy starts with nothing that was kept
    assert not torch.equal(before, after)


@pytest.mark.parametrize('fused', [True, False])
def test_training_and_validation_in_turns(fused):
    conv, x = convolution().requires_grad_(), numbers(1, 16, 24, 24)
    optimizer = torch.optim.AdamW(conv.parameters(), lr=0.01, fused=fused)
    seen = []
    for _ in range(3):
        conv.train()
        conv(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        conv.eval()
        with torch.no_grad():
            seen.append(conv(x))
            expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
        assert largest_error(seen[-1], expected) < 1e-5
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_weights_that_are_inference_tensors():
    with torch.inference_mode():
        conv, x = convolution(), numbers(1, 16, 24, 24)
        before = conv(x)
        conv.weight.mul_(-1)
        conv.bias.mul_(-1)
        torch.testing.assert_close(conv(x), -before)


def test_weights_without_change_are_transformed_once(monkeypatch):
    counted = []
    transform = winograd._weight_at_points
    monkeypatch.setattr(winograd, '_weight_at_points', lambda weight: counted.append(1) or transform(weight))
    conv, x = convolution(), numbers(1, 16, 24, 24)
    with torch.no_grad():
        conv.weight.view(-1)[0] = float('nan')  # is not equal to itself
        for _ in range(3):
            conv(x)
    assert len(counted) == 1


@pytest.mark.parametrize('leave', [lambda conv: conv.train(), lambda conv: conv.eval(), lambda conv: conv.double()])
def test_what_is_kept_is_freed(leave):
    conv = convolution()
    with torch.no_grad():
        conv(numbers(1, 16, 24, 24))
    assert conv._transformed._kept is not None
    leave(conv)
    assert conv._transformed._kept is None
