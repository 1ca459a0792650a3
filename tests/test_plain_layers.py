"""Do hooks, adapters and other things attached to a layer always take effect?"""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from backbones import ConvNeXt, FasterNet, InceptionNeXt
from backbones.fast import fused_block
from backbones.fast.fused_block import FusedBlock
from backbones.fuse import fuse

ARCHS = {
    InceptionNeXt: dict(dims=(16, 32), depths=(1, 1), mlp_ratios=(4, 3)),
    ConvNeXt: dict(dims=(16, 32), depths=(1, 1), kernel=3),
    FasterNet: dict(dims=(16, 32), depths=(1, 1), act='GELU'),
}
every_family = pytest.mark.parametrize('family', ARCHS, ids=lambda family: family.__name__)
lean_families = pytest.mark.parametrize('family', [InceptionNeXt, ConvNeXt], ids=lambda family: family.__name__)


class Adapter(nn.Module):
    """A layer with a product of low rank beside it (LoRA)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight, layer.bias  # as some libraries offer them
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.layer(x) * (1 + self.scale)


class WiderLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class WiderConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def adapter(mlp, first, second):
    setattr_at(mlp, first, Adapter(at(mlp, first)))


def subclass(mlp, first, second):
    layer = at(mlp, first)
    layer.__class__ = WiderLinear if isinstance(layer, nn.Linear) else WiderConv


def hook(mlp, first, second):
    at(mlp, second).register_forward_hook(lambda module, inputs, output: 2 * output)


def pre_hook(mlp, first, second):
    at(mlp, first).register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def hook_of_the_mlp(mlp, first, second):
    mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def hook_of_the_activation(mlp, first, second):
    activation(mlp).register_forward_hook(lambda module, inputs, output: 2 * output)


def other_activation(mlp, first, second):
    replace_activation(mlp, nn.ReLU())


def other_gelu(mlp, first, second):
    """Its error against the exact one is small, but not rounding."""
    replace_activation(mlp, nn.GELU('tanh'))


def subclass_of_the_activation(mlp, first, second):
    class Squared(nn.GELU):
        def forward(self, x):
            return super().forward(x) ** 2

    replace_activation(mlp, Squared())


def parametrized(mlp, first, second):
    layer = parametrizations.weight_norm(at(mlp, first))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)


def pruned(mlp, first, second):
    prune.random_unstructured(at(mlp, first), 'weight', amount=0.5)


def own_forward(mlp, first, second):
    layer = at(mlp, second)
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


CHANGES = [
    adapter, subclass, hook, pre_hook, hook_of_the_mlp, hook_of_the_activation, other_activation, other_gelu,
    subclass_of_the_activation, parametrized, pruned, own_forward,
]  # fmt: skip
every_change = pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)


def at(mlp, name):
    return mlp.get_submodule(name)


def setattr_at(mlp, name, module):
    mlp.register_module(name, module)


def activation(mlp):
    return mlp[2] if isinstance(mlp, nn.Sequential) else mlp.act


def replace_activation(mlp, act):
    mlp.register_module('2' if isinstance(mlp, nn.Sequential) else 'act', act)


def changed(family, change, **options):
    torch.manual_seed(0)
    model = family(ARCHS[family], layer_scale_init_value=0.5, out_indices=(0, 1), **options)
    mlp = model.stages[0].blocks[0].mlp
    change(mlp, *(('0', '3') if isinstance(mlp, nn.Sequential) else ('fc1', 'fc2')))
    return model


def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def gradients(model):
    outs = model(images())
    sum(out.square().mean() for out in outs).backward()
    return [*outs, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@lean_families
@every_change
def test_lean_mlps(family, change):
    plain, lean = (changed(family, change, lean_mlp=lean) for lean in (False, True))
    assert all(block.lean_mlp for stage in lean.stages for block in stage.blocks)
    got, expected = gradients(lean), gradients(plain)
    assert len(got) == len(expected) > 10
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@lean_families
def test_an_mlp_of_another_class(family):
    class Other(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.fc1, self.act, self.fc2 = mlp.fc1, mlp.act, mlp.fc2

        def forward(self, x):
            return 3 * x

    torch.manual_seed(0)
    model = family(ARCHS[family], layer_scale_init_value=0.5, out_indices=(0, 1), lean_mlp=True)
    block = model.stages[0].blocks[0]
    block.mlp = Other(block.mlp)
    model(images())[0].square().mean().backward()
    assert block.mlp.fc1.weight.grad is None


@pytest.mark.parametrize('product', ['oneDNN', 'usual'])
@every_family
@every_change
def test_fused_models(family, change, product, monkeypatch):
    if product == 'oneDNN':
        monkeypatch.setattr(fused_block, '_min_product', lambda: 0)
    model = changed(family, change).eval()
    with torch.no_grad():
        wanted = model(images())  # first: PyTorch copies a pruned layer only after that
        fused = fuse(model)
        for got, expected in zip(fused(images()), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(fused.stages[1].blocks[0], FusedBlock), 'what was not changed is fused'


@pytest.mark.parametrize('part', ['norm', 'drop_path', 'block', 'downsample'])
@every_family
def test_hooks_of_other_parts_of_a_fused_model(family, part):
    torch.manual_seed(0)
    model = family(ARCHS[family], layer_scale_init_value=0.5, out_indices=(0, 1)).eval()
    stage = model.stages[1]
    block = stage.blocks[0]
    norm = block.mlp[1] if family is FasterNet else getattr(block, 'norm', None)
    module = {'norm': norm, 'drop_path': block.drop_path, 'block': block, 'downsample': stage.downsample}[part]
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    with torch.no_grad():
        for got, expected in zip(fuse(model)(images()), model(images()), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_hooks_of_a_fused_model():
    torch.manual_seed(0)
    fused = fuse(InceptionNeXt(ARCHS[InceptionNeXt], layer_scale_init_value=0.5, out_indices=(0, 1)).eval())
    other = copy.deepcopy(fused)
    for name in ('fc1', 'fc2'):
        other.stages[0].blocks[0].get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output)
    fused.stages[0].blocks[0].fc1.forward = functools.partial(twice, fused.stages[0].blocks[0].fc1)
    fused.stages[0].blocks[0].fc2.forward = functools.partial(twice, fused.stages[0].blocks[0].fc2)
    with torch.no_grad():
        for got, expected in zip(other(images()), fused(images()), strict=True):
            torch.testing.assert_close(got, expected)


def twice(layer, x):
    return 2 * F.linear(x, layer.weight, layer.bias)


@lean_families
def test_hooks_on_all_modules_see_every_layer(family):
    """Profilers and counters of operations register such hooks."""
    model = family(ARCHS[family], out_indices=(0, 1))
    model.use_lean_mlp()
    layers = {module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.GELU)}
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.add(module))
    try:
        model(torch.randn(2, 3, 32, 32))
    finally:
        handle.remove()
    assert layers <= seen
