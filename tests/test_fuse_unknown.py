"""Does a fused model still compute what layers do that `fuse` does not know?"""

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from timm.layers import BatchNormAct2d, SEModule
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune, weight_norm

from backbones import ConvNeXt, FasterNet, InceptionNeXt
from backbones.fast import fused_block
from backbones.fast.fused_block import FusedBlock
from backbones.fuse import fuse
from backbones.layers import Stage
from dense.export.fuse_mmcv import fuse_model

ARCHS = {
    InceptionNeXt: dict(dims=(16, 32), depths=(1, 1), mlp_ratios=(4, 3)),
    ConvNeXt: dict(dims=(16, 32), depths=(1, 1), kernel=3),
    FasterNet: dict(dims=(16, 32), depths=(1, 1), act='GELU'),
}
every_family = pytest.mark.parametrize('family', ARCHS, ids=lambda family: family.__name__)


class TwiceBN(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class TwiceBNByCall(nn.BatchNorm2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


def small(family, **options):
    torch.manual_seed(0)
    options = {'layer_scale_init_value': 0.5, 'out_indices': (0, 1), **options}
    return family(ARCHS[family], **options).eval()


def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def assert_same(model, fused):
    with torch.no_grad():
        for got, expected in zip(fused(images()), model(images()), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def is_fused(model, stage=0):
    return isinstance(model.stages[stage].blocks[0], FusedBlock)


@every_family
@pytest.mark.parametrize('norm', [BatchNormAct2d, TwiceBN, TwiceBNByCall])
def test_norms_that_do_more_than_a_batch_norm(family, norm):
    model = small(family, norm_cfg=dict(type=norm))
    assert_same(model, fuse(model))


@every_family
def test_one_norm_that_does_more(family):
    for where in ('stem.1', 'stages.1.downsample.0', 'stages.1.downsample.1'):
        model = small(family, norm_cfg=dict(type='BN'))
        path, name = where.rsplit('.', 1)
        old = model.get_submodule(where)
        if isinstance(old, nn.BatchNorm2d):
            model.get_submodule(path).register_module(name, TwiceBN(old.num_features).eval())
            fused = fuse(model)
            assert_same(model, fused)
            assert is_fused(fused), 'what is known is fused'


class Renamed(nn.BatchNorm2d):
    """A batch norm under another name."""


@every_family
@pytest.mark.parametrize('norm', [dict(type=Renamed), dict(type='SyncBN'), 'reverted'], ids=str)
def test_subclasses_that_do_nothing_else_are_folded(family, norm):
    model = small(family, norm_cfg=dict(type='SyncBN') if norm == 'reverted' else norm)
    if norm == 'reverted':
        model = revert_sync_batchnorm(model)  # its norms are of a class of MMEngine's
    fused = fuse(model)
    assert_same(model, fused)
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize('family', [ConvNeXt, InceptionNeXt], ids=lambda family: family.__name__)
def test_layer_norms_without_gain(family):
    model = small(family, norm_cfg=dict(type='LN', affine=False))
    fused = fuse(model)
    assert_same(model, fused)
    assert is_fused(fused)


@every_family
def test_an_adapter_in_place_of_drop_path(family):
    model = small(family)
    model.stages[0].blocks[0].drop_path = SEModule(16).eval()
    fused = fuse(model)
    assert_same(model, fused)
    assert is_fused(fused, stage=1)


@every_family
def test_drop_path_is_removed(family):
    fused = fuse(small(family, drop_path_rate=0.5))
    assert is_fused(fused, stage=0) and is_fused(fused, stage=1)


@every_family
@pytest.mark.parametrize('kind', ['attention', 'factor of each channel'])
def test_activations_that_are_not_elementwise(family, kind):
    model = small(family)
    mlp = model.stages[0].blocks[0].mlp
    hidden = 32 if family is FasterNet else 64
    act = SEModule(hidden) if kind == 'attention' else nn.PReLU(hidden)
    if family is ConvNeXt:  # its hidden maps are channels-last
        act = nn.Softmax(dim=1 if kind == 'attention' else -1)
    mlp.register_module('2' if family is FasterNet else 'act', act)
    assert_same(model, fuse(model.eval()))


MIXERS = {InceptionNeXt: 'token_mixer', ConvNeXt: 'conv_dw', FasterNet: 'spatial_mixing'}


@every_family
def test_a_mixer_that_returns_its_input(family, monkeypatch):
    """Fused blocks overwrite the mixer's map, which is here the block's input, and an output of the stage before."""
    monkeypatch.setattr(fused_block, '_HIDDEN_BYTES', 1)
    model, other = small(family), small(family)
    model.stages[1].downsample = nn.Identity()
    model.stages[1].blocks = other.stages[0].blocks
    model.stages[1].blocks[0].register_module(MIXERS[family], nn.Identity())
    assert_same(model.eval(), fuse(model.eval()))


@every_family
@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_hook_may_keep_the_map_of_a_mixer(family, when, monkeypatch):
    monkeypatch.setattr(fused_block, '_HIDDEN_BYTES', 1)
    model = small(family)
    kept = []

    def listen(model, mixer):
        mixer.register_forward_hook(lambda module, inputs, output: kept.append(output))
        return model

    mixer = model.stages[0].blocks[0].get_submodule(MIXERS[family])
    if when == 'before':
        fused = fuse(listen(model, mixer))
    else:
        fused = fuse(model)
        listen(model, mixer)
        listen(fused, fused.stages[0].blocks[0].mixer)
    with torch.no_grad():
        fused(images())
        model(images())
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-5)


@every_family
def test_backbones_and_stages_with_their_own_forward(family):
    class Sharp(family):
        def forward_stages(self, x):
            x = F.relu(self.stem[0](x))  # what is at position 0 must not change
            return tuple(stage(x) for stage in self.stages[:1])

    class Twice(Stage):
        def forward(self, x):
            return super().forward(2 * self.blocks[0](x))

    torch.manual_seed(0)
    model = Sharp(ARCHS[family], layer_scale_init_value=0.5, out_indices=(0, 1)).eval()
    assert_same(model, fuse(model))
    model = small(family)
    model.stages[1].__class__ = Twice
    model.stages[1].downsample, model.stages[1].blocks = nn.Identity(), nn.Sequential(nn.Conv2d(16, 16, 1), TwiceBN(16))
    model = model.eval()
    assert_same(model, fuse(model))


def test_grouped_downsampling():
    model = small(InceptionNeXt)
    model.stages[1].downsample[1] = nn.Conv2d(16, 32, 2, stride=2, groups=4)
    model.eval()
    assert_same(model, fuse(model))


def norms_of_heads():
    from mmcv.cnn import ConvModule

    class Twice(ConvModule):
        def forward(self, x):
            return self.norm(2 * self.conv(x))

    other_norm = ConvModule(4, 8, 3, norm_cfg=dict(type='BN'))
    other_norm.bn = TwiceBN(8)
    grouped = ConvModule(4, 8, 3, norm_cfg=dict(type='BN'))
    grouped.conv = nn.ConvTranspose2d(4, 8, 3, groups=2)
    return {'norm': other_norm, 'module': Twice(4, 8, 3, norm_cfg=dict(type='BN'), act_cfg=None), 'grouped': grouped}


@pytest.mark.parametrize('kind', ['norm', 'module', 'grouped'])
def test_heads(kind):
    from mmcv.cnn import ConvModule

    module = norms_of_heads()[kind]
    model = nn.Sequential(module, ConvModule(8, 4, 1, norm_cfg=dict(type='BN'))).eval()
    with torch.no_grad():
        module.norm.running_mean.normal_()
        module.norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 4, 8, 8)
        fused = fuse_model(model)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert not fused[1].with_norm, 'what is known is folded'


@every_family
@pytest.mark.parametrize('change', [prune.l1_unstructured, weight_norm], ids=['pruned', 'weight norm'])
def test_layers_whose_weights_are_computed_before_each_call(family, change):
    """PyTorch itself cannot copy them before they are called without gradients."""
    model = small(family)
    mlp = model.stages[0].blocks[0].mlp
    change(mlp[0] if family is FasterNet else mlp.fc1, 'weight', *([0.5] if change is prune.l1_unstructured else []))
    fused = fuse(model)
    assert not is_fused(fused) and is_fused(fused, stage=1)
    assert_same(model, fused)
    fuse(fused)  # it can be copied again


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, d=None, *, other=None):
        found = d if other is None else other
        while not isinstance(found, torch.Tensor):
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        return self.conv(found)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: {'img': x}, lambda x: [(x,)], lambda x: {'a': [{'b': x}]}])
@pytest.mark.parametrize('name', [None, 'd', 'other'])
def test_gradients_of_inputs_in_containers_are_refused(wrap, name):
    fused = fuse(Named().eval())

    def call(x):
        return fused(wrap(x)) if name is None else fused(**{name: wrap(x)})

    assert call(images()).shape == (2, 4, 32, 48)
    with pytest.raises(ValueError, match='its input requires a gradient'):
        call(images().requires_grad_())
    with torch.no_grad():
        assert not call(images().requires_grad_()).requires_grad
