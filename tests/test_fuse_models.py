"""Does a fused detector or segmentor predict what the unfused one does?"""

import pytest
import torch
from leaves import BY_NAME, parts_of
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_sets import reduce
from torch import nn
from torch.nn.utils import parametrizations

from backbones.fast import winograd
from backbones.fast.fused_block import FusedBlock
from backbones.fast.winograd import WinogradConv2d
from backbones.fuse import fuse
from dense.export.fuse_mmcv import fuse_model

MODELS_TO_FUSE = [
    'mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160',
    'upernet_inceptionnext-a_450i_mini-128x128',
    'mask-rcnn_fasternet-t0_fpn_1x_coco',
    'cascade-mask-rcnn_inceptionnext-t_fpn_amp-ms-crop-3x_coco',
    'retinanet_inceptionnext-a_fpn_1x_coco',
    'semantic-fpn_fasternet-t0_8xb4-40k_ade20k-512x512',
]


def build(name):
    cfg = Config.fromfile(BY_NAME[name])
    reduce(cfg)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if key.endswith('running_var'):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif key.endswith('running_mean'):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(params=['all convolutions in tiles', 'large maps in tiles'])
def tiles(request):
    """The maps of these tests are small: with the usual limits hardly any convolution would be computed in tiles."""
    if request.param == 'all convolutions in tiles':
        request.getfixturevalue('all_in_tiles')


@pytest.mark.usefixtures('tiles')
@pytest.mark.parametrize('name', MODELS_TO_FUSE)
def test_raw_outputs_agree(name):
    model = build(name)
    fused = fuse_model(model)
    blocks = [m for m in fused.modules() if isinstance(m, FusedBlock)]
    assert len(blocks) == sum(len(stage.blocks) for stage in model.backbone.stages)
    in_heads = [key for key, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d) and 'out_norm' not in key]
    assert not in_heads
    suited = sum(WinogradConv2d.suits(m) for m in model.modules())
    assert sum(isinstance(m, WinogradConv2d) for m in fused.modules()) == suited
    assert suited or winograd._limits().weights
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, expected_features = (m.extract_feat(x) for m in (fused, model))
        if getattr(model, 'with_decode_head', False):
            features += (fused.decode_head(features),)
            expected_features += (model.decode_head(expected_features),)
    assert len(features) == len(expected_features) >= 4
    for got, expected in zip(features, expected_features, strict=True):
        assert ((got - expected).norm() / expected.norm()).item() < 1e-4


def test_importing_dense_changes_nothing():
    """`fuse` rewrites what it knows, whatever was imported; whole models are rewritten by `fuse_model`."""
    model = build(MODELS_TO_FUSE[1])
    in_heads = [name for name, m in model.decode_head.named_modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [name for name, m in fuse(model).decode_head.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert kept == in_heads and kept


def hooked(module):
    module.conv.register_forward_hook(lambda module, inputs, output: 2 * output)


def parametrized(module):
    parametrizations.weight_norm(module.conv)


@pytest.mark.parametrize('change', [hooked, parametrized])
def test_changed_convolutions_of_heads_stay(change):
    from mmcv.cnn import ConvModule

    model = nn.Sequential(ConvModule(4, 8, 3, norm_cfg=dict(type='BN'))).eval()
    change(model[0])
    model.eval()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(fuse_model(model)(x), model(x))


def test_every_method_is_fused():
    methods = {parts_of(name)['method'] for name in BY_NAME}
    assert {parts_of(name)['method'] for name in MODELS_TO_FUSE} == methods - {'classifier'}
