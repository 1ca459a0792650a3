"""Are the numbers of the detection configs those of the published recipes?"""

import numpy as np
import pytest
from leaves import build_on_meta, load, lr_curve
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from backbones import InceptionNeXt

MASK_RCNN = [f'mask-rcnn_inceptionnext-{arch}_fpn_1x_coco' for arch in 'atsb']


@pytest.mark.parametrize('name', MASK_RCNN)
def test_mask_rcnn_rate_is_1x(name):
    cfg = load(name)
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.optim_wrapper.get('clip_grad') is None
    epoch = 1000  # COCO has 7330 steps per epoch; fewer tell the same
    wanted = {0: 1e-7, 250: 5e-5, 500: 1e-4, 7999: 1e-4, 8000: 1e-5, 10999: 1e-5, 11000: 1e-6, 11999: 1e-6}
    rates = lr_curve(cfg, epoch, set(wanted))
    for iteration, rate in wanted.items():
        assert rates[iteration] == pytest.approx(rate, rel=5e-3), iteration


@pytest.mark.parametrize('name', MASK_RCNN)
def test_undecayed_parameters_are_norms_and_layer_scale(name):
    model, cfg = build_on_meta(name), load(name)
    init_default_scope(cfg.default_scope)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    assert {group['lr'] for group in groups} == {cfg.optim_wrapper.optimizer.lr}
    norms = {
        f'{prefix}.{key}'
        for prefix, module in model.named_modules()
        if 'Norm' in type(module).__name__
        for key, _ in module.named_parameters(recurse=False)
    }
    scales = {key for key, _ in model.named_parameters() if key.endswith('.gamma')}
    blocks = sum(InceptionNeXt.ARCHS[cfg.model.backbone.arch].depths)
    assert len(scales) == blocks
    assert len([key for key in norms if key.startswith('backbone.')]) == 2 * (1 + 3 + blocks + 4)
    for key, parameter in model.named_parameters():
        expected = 0 if key in norms | scales else cfg.optim_wrapper.optimizer.weight_decay
        assert decay[id(parameter)] == expected, key


# See the recipe's docstring.
DROP_PATH = dict(zip(MASK_RCNN, (0, 0.1, 0.2, 0.3), strict=True))


@pytest.mark.parametrize('name', MASK_RCNN)
def test_drop_path_grows_linearly(name):
    backbone = build_on_meta(name).backbone
    rates = [getattr(block.drop_path, 'drop_prob', 0) for stage in backbone.stages for block in stage.blocks]
    assert len(rates) == sum(InceptionNeXt.ARCHS[load(name).model.backbone.arch].depths)
    np.testing.assert_allclose(rates, np.linspace(0, DROP_PATH[name], len(rates)), atol=1e-6)


@pytest.mark.parametrize('name', MASK_RCNN)
def test_outputs_have_a_synchronised_norm(name):
    backbone = build_on_meta(name).backbone
    norms = [getattr(backbone, f'out_norm{i}') for i in range(4)]
    assert [type(norm) for norm in norms] == [nn.SyncBatchNorm] * 4
    assert tuple(norm.num_features for norm in norms) == backbone.out_channels


# Millions of parameters, counted from the architecture without output norms, which add 2 x sum(channels).
PARAMETERS = dict(zip(MASK_RCNN, (22.94, 44.25, 65.57, 100.84), strict=True))


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    model = build_on_meta(name)
    number = sum(parameter.numel() for parameter in model.parameters()) - 2 * sum(model.backbone.out_channels)
    assert number / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)
