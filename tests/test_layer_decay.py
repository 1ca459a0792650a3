"""Do learning rates fall towards the input as in ConvNeXt's published recipe, for every family?"""

import math
import re

import pytest
import torch
from leaves import BACKBONES, build_on_meta, load
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from product import ARCHS, names_of
from torch import nn

import backbones
import dense  # noqa: F401
from dense.errors import UserError

LR = 1e-3
WEIGHT_DECAY = 0.05
CASCADE = {  # depth of the whole network, decay rate and number of layers of the published configs
    'cascade-mask-rcnn_inceptionnext-t_fpn_amp-ms-crop-3x_coco': (18, 0.7, 6),
    'cascade-mask-rcnn_inceptionnext-s_fpn_amp-ms-crop-3x_coco': (36, 0.7, 12),
    'cascade-mask-rcnn_inceptionnext-b_fpn_amp-ms-crop-3x_coco': (36, 0.8, 12),
    'cascade-mask-rcnn_convnext-t_fpn_amp-ms-crop-3x_coco': (18, 0.7, 6),
    'cascade-mask-rcnn_convnext-s_fpn_amp-ms-crop-3x_coco': (36, 0.7, 12),
    'cascade-mask-rcnn_convnext-b_fpn_amp-ms-crop-3x_coco': (36, 0.8, 12),
}
# Factors of ConvNeXt's UperNet recipe (rate 0.9) to three digits: stem and downsamplings, the four stages.
STAGE_FACTORS = {6: (0.478, 0.531, 0.590, 0.656, 0.729), 12: (0.254, 0.282, 0.314, 0.349, 0.387)}
UPERNET = {f'upernet_convnext-{arch}_4xb4-amp-160k_ade20k-512x512': 6 if arch == 't' else 12 for arch in 'tsb'}

every_arch = pytest.mark.parametrize(('family', 'arch'), sorted(BACKBONES.values()))


class Model(nn.Module):
    """A backbone with something behind it, as detectors and segmentors have."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(4, 4, 1)


def make_model(family='InceptionNeXt', arch='atto', **kwargs):
    with torch.device('meta'):
        return Model(getattr(backbones, family)(arch, out_norm=dict(type='BN'), **kwargs))


def build(model, **paramwise):
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, cfg)


def settings_of(model, wrapper, lr=LR):
    """Parameter name -> (factor of the learning rate, weight decay); fails for a parameter in two groups."""
    found = [
        (id(parameter), (group['lr'] / lr, group['weight_decay']))
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    ]
    by_id = dict(found)
    assert len(by_id) == len(found)
    return {name: by_id[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in by_id}


def factors_of(*args, **kwargs):
    return {name: factor for name, (factor, _) in settings_of(*args, **kwargs).items()}


def place_of(name):
    """Stage, and block or None, of a parameter of the families with a stem and stages; None for any other."""
    match = re.match(r'backbone\.stages\.(\d)\.(?:blocks\.(\d+)|downsample)', name)
    return match and (int(match[1]), match[2] and int(match[2]))


def published_layer(name, num_layers):
    """ConvNeXt's own assignment, written down for its three long and one long stage: groups of three blocks."""
    if name.startswith('backbone.stem.'):
        return 0
    if not place_of(name):
        return num_layers + 1
    stage, block = place_of(name)
    return {0: 1, 1: 2, 2: 3 + (block or 0) // 3, 3: num_layers}[stage]


@pytest.mark.parametrize('name', CASCADE)
def test_layer_wise_factors_are_the_published_ones(name):
    num_blocks, rate, num_layers = CASCADE[name]
    cfg, model = load(name), build_on_meta(name)
    init_default_scope('mmdet')
    assert sum(len(stage.blocks) for stage in model.backbone.stages) == num_blocks
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == rate
    factors = factors_of(model, build_optim_wrapper(model, cfg.optim_wrapper), cfg.optim_wrapper.optimizer.lr)
    assert set(factors) == {key for key, _ in model.named_parameters()}
    for key, factor in factors.items():
        assert factor == pytest.approx(rate ** (num_layers + 1 - published_layer(key, num_layers))), key
    assert len({round(factor, 9) for factor in factors.values()}) == num_layers + 2


@pytest.mark.parametrize('name', UPERNET)
def test_stage_wise_factors_are_the_published_ones(name):
    cfg, model = load(name), build_on_meta(name)
    init_default_scope('mmseg')
    first, *stages = STAGE_FACTORS[UPERNET[name]]
    seen = set()
    factors = factors_of(model, build_optim_wrapper(model, cfg.optim_wrapper), cfg.optim_wrapper.optimizer.lr)
    for key, factor in factors.items():
        stage, block = place_of(key) or (None, None)
        is_before = key.startswith('backbone.stem.') or (stage is not None and block is None)
        expected = first if is_before else 1 if stage is None else stages[stage]
        assert factor == pytest.approx(expected, abs=5e-4), key
        seen.add(expected)
    assert seen == {first, *stages, 1}


@every_arch
@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_rates_grow_with_depth(family, arch, decay_type):
    model = make_model(family, arch)
    depth = sum(getattr(backbones, family).ARCHS[arch].depths)
    num_layers = max(math.ceil(depth / 3), 4)
    factors = factors_of(model, build(model, decay_rate=0.9, decay_type=decay_type, num_layers=num_layers))
    assert set(factors) == {name for name, _ in model.named_parameters()}
    inner = [
        factor
        for name, factor in factors.items()
        if name.startswith(('backbone.stem.', 'backbone.stages.'))
        and (decay_type == 'layer_wise' or '.downsample.' not in name)
    ]
    assert inner == sorted(inner)
    stem = [factor for name, factor in factors.items() if name.startswith('backbone.stem.')]
    assert stem == pytest.approx([0.9 ** (num_layers + 1)] * len(stem)) and min(inner) == stem[0]
    outer = {name: factor for name, factor in factors.items() if name.startswith(('backbone.out_norm', 'head.'))}
    assert set(outer.values()) == {1.0} and len(outer) == 2 * 4 + 2
    assert max(inner) == pytest.approx(0.9 if decay_type == 'layer_wise' else 0.9 ** (num_layers - 3))


def test_every_arch_was_covered():
    assert set(BACKBONES.values()) == names_of(ARCHS)


def archs_of(family):
    return getattr(backbones, family).ARCHS


@every_arch
def test_by_default_a_layer_is_three_blocks(family, arch):
    model = make_model(family, arch)
    depth = sum(archs_of(family)[arch].depths)
    default, explicit = build(model, decay_rate=0.9), build(model, decay_rate=0.9, num_layers=math.ceil(depth / 3))
    assert settings_of(model, default) == settings_of(model, explicit)


@every_arch
def test_vectors_and_biases_are_not_decayed(family, arch):
    model = make_model(family, arch)
    decays = {name: decay for name, (_, decay) in settings_of(model, build(model, decay_rate=0.9)).items()}
    for name, parameter in model.named_parameters():
        is_spared = len(parameter.shape) == 1 or name.endswith('bias')
        assert decays[name] == (0 if is_spared else WEIGHT_DECAY), name
    assert {0, WEIGHT_DECAY} == set(decays.values())


@pytest.mark.parametrize(('decay_type', 'num_layers'), [('layer_wise', 3), ('stage_wise', 5)])
def test_a_backbone_of_timm_has_rates_too(decay_type, num_layers):
    """ResNet-18: eight blocks make three layers; stage-wise it has five levels, which are more."""
    with torch.device('meta'):
        model = Model(backbones.TimmBackbone('resnet18', out_norm=dict(type='BN')))
    factors = factors_of(model, build(model, decay_rate=0.9, decay_type=decay_type))
    assert set(factors) == {name for name, _ in model.named_parameters()}
    assert factors['backbone.body.conv1.weight'] == min(factors.values()) == pytest.approx(0.9 ** (num_layers + 1))
    blocks = [value for name, value in factors.items() if re.match(r'backbone\.body\.layer', name)]
    assert blocks == sorted(blocks) and max(blocks) == pytest.approx(0.9)
    outer = [value for name, value in factors.items() if name.startswith(('backbone.out_norm', 'head.'))]
    assert outer == [1.0] * (2 * 4 + 2)


def test_frozen_parameters_are_left_out():
    model = make_model(frozen_stages=2)
    kept = settings_of(model, build(model, decay_rate=0.9))
    assert set(kept) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(('backbone.stem.', 'backbone.stages.0.', 'backbone.stages.1.')) for name in kept)
    # What is frozen does not shift the layers of the rest.
    free = make_model()
    assert kept.items() <= settings_of(free, build(free, decay_rate=0.9)).items()


def test_a_step_moves_each_parameter_by_its_rate():
    model = Model(backbones.InceptionNeXt(dict(dims=(16, 16, 32, 32), depths=(1, 2, 2, 1))))
    cfg = dict(
        optimizer=dict(type='SGD', lr=1.0),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=0.5, num_layers=3),
    )
    wrapper = build_optim_wrapper(model, cfg)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    wrapper.update_params(sum(parameter.sum() for parameter in model.parameters()))
    steps = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    # Six blocks in three layers of two; powers of 0.5 for layers 0 to 4.
    expected = {
        'stem.0': 1 / 16,
        'stages.0.blocks.0': 1 / 8,
        'stages.1.downsample.1': 1 / 8,
        'stages.1.blocks.0': 1 / 8,
    }
    expected |= {'stages.1.blocks.1': 1 / 4, 'stages.2.blocks.0': 1 / 4, 'stages.2.blocks.1': 1 / 2}
    expected |= {'stages.3.downsample.1': 1 / 2, 'stages.3.blocks.0': 1 / 2}
    for part, size in expected.items():
        names = [name for name in steps if name.startswith(f'backbone.{part}.')]
        assert names
        for name in names:
            torch.testing.assert_close(steps[name], torch.full_like(steps[name], size), atol=1e-6, rtol=0)
    assert steps['head.weight'].mean().item() == pytest.approx(1)


def test_schedules_keep_the_factors_and_the_log_shows_the_full_rate():
    model = make_model()
    wrapper = build(model, decay_rate=0.9)
    before = settings_of(model, wrapper)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=10), default_args=dict(optimizer=wrapper)
    )
    after = settings_of(model, wrapper, lr=LR / 2)
    assert {name: factor for name, (factor, _) in after.items()} == pytest.approx(
        {name: factor for name, (factor, _) in before.items()}
    )
    wrapper.step()  # without gradients it changes nothing; PyTorch wants it before the scheduler's
    scheduler.step()
    assert wrapper.get_lr()['lr'][0] == wrapper.get_lr()['base_lr'][0] == pytest.approx(LR * (0.5 + 0.5 / 9))


@pytest.mark.parametrize(
    ('paramwise', 'cause', 'remedy'),
    [
        (dict(decay_rat=0.9), 'unknown config key optim_wrapper.paramwise_cfg.decay_rat', 'decay_rate'),
        (dict(), 'decay_rate is None', '0.95'),
        (dict(decay_rate=0), 'decay_rate is 0, allowed is above 0, up to 1', '0.95'),
        (dict(decay_rate=1.5), 'decay_rate is 1.5', '0.95'),
        (dict(decay_rate='0.9'), "decay_rate is '0.9'", '0.95'),
        (dict(decay_rate=0.9, decay_type='block_wise'), "decay_type 'block_wise'", 'layer_wise, stage_wise'),
        (dict(decay_rate=0.9, num_layers=0), 'num_layers is 0', 'third'),
        (dict(decay_rate=0.9, num_layers=2.5), 'num_layers is 2.5', 'third'),
        (dict(decay_rate=0.9, num_layers=True), 'num_layers is True', 'third'),
        (dict(decay_rate=0.9, decay_type='stage_wise', num_layers=3), 'less than the 4 stages of InceptionNeXt', '4'),
    ],
)
def test_mistakes_have_a_cause_and_a_remedy(paramwise, cause, remedy):
    model = make_model()
    with pytest.raises(UserError) as caught:
        build(model, **paramwise)
    assert cause in caught.value.cause and remedy in caught.value.remedy
    assert '\n' not in caught.value.cause + caught.value.remedy


def test_a_rate_to_start_from_is_needed():
    cfg = dict(
        optimizer=dict(type='AdamW'),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=0.9),
    )
    with pytest.raises(UserError, match=r'optim_wrapper\.optimizer\.lr'):
        build_optim_wrapper(make_model(), cfg)


def test_other_backbones_are_refused():
    init_default_scope('mmdet')
    import mmdet.models  # noqa: F401

    with torch.device('meta'):
        model = Model(MODELS.build(dict(type='mmdet.ResNet', depth=18)))
    with pytest.raises(UserError) as caught:
        build(model, decay_rate=0.9)
    assert 'ResNet does not' in caught.value.cause
    assert all(name in caught.value.remedy for name in backbones.__all__)
    with pytest.raises(UserError, match='NoneType does not'):
        build(nn.Linear(2, 2), decay_rate=0.9)
