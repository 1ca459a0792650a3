"""Are the numbers of the segmentation configs those of the published recipes?"""

import numpy as np
import pytest
from leaves import build_on_meta, load, lr_curve
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from backbones import InceptionNeXt

UPERNET = [f'upernet_inceptionnext-{arch}_4xb4-160k_ade20k-512x512' for arch in 'atsb']


@pytest.mark.parametrize('name', UPERNET)
def test_upernet_rate_is_swins(name):
    cfg = load(name)
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # full precision
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    assert cfg.optim_wrapper.get('clip_grad') is None
    if name != UPERNET[0]:  # one schedule, from one base
        assert cfg.param_scheduler == load(UPERNET[0]).param_scheduler
        return
    rates = lr_curve(cfg, 1, {0, 750, 1500, 80750, 159999})
    expected = {0: 6e-11, 750: 6e-5 * 0.5, 1500: 6e-5, 80750: 6e-5 / 2, 159999: 0}
    for iteration, rate in expected.items():
        assert rates[iteration] == pytest.approx(rate, rel=2e-3, abs=1e-12), iteration


@pytest.mark.parametrize('name', UPERNET)
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


# Table 10 of the InceptionNeXt paper, and its ImageNet rate for atto.
DROP_PATH = dict(zip(UPERNET, (0.1, 0.2, 0.3, 0.4), strict=True))


@pytest.mark.parametrize('name', UPERNET)
def test_drop_path_grows_linearly(name):
    backbone = build_on_meta(name).backbone
    rates = [getattr(block.drop_path, 'drop_prob', 0) for stage in backbone.stages for block in stage.blocks]
    assert len(rates) == sum(InceptionNeXt.ARCHS[load(name).model.backbone.arch].depths)
    np.testing.assert_allclose(rates, np.linspace(0, DROP_PATH[name], len(rates)), atol=1e-6)


@pytest.mark.parametrize('name', UPERNET)
def test_outputs_have_a_synchronised_norm(name):
    backbone = build_on_meta(name).backbone
    norms = [getattr(backbone, f'out_norm{i}') for i in range(4)]
    assert [type(norm) for norm in norms] == [nn.SyncBatchNorm] * 4
    assert tuple(norm.num_features for norm in norms) == backbone.out_channels


# Millions of parameters: Table 6 to two more digits, auxiliary head and output norms included.
PARAMETERS = dict(zip(UPERNET[1:], (56.40, 77.72, 114.98), strict=True))


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    number = sum(parameter.numel() for parameter in build_on_meta(name).parameters())
    assert number / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)


@pytest.mark.parametrize('name', UPERNET)
def test_ade20k_evaluation_is_swins(name):
    cfg = load(name)
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.tta_model.type == 'SegTTAModel'
    scales, flips = cfg.tta_pipeline[1].transforms[:2]
    ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [tuple(item.scale) for item in scales] == [(int(2048 * ratio), int(512 * ratio)) for ratio in ratios]
    assert [(item.prob, item.direction) for item in flips] == [(0.0, 'horizontal'), (1.0, 'horizontal')]
