"""Are the numbers of the detection configs those of the published recipes?

The references are the papers' figures (FasterNet: Tables 4 and 7; ConvNeXt's and PoolFormer's released configs),
MMDetection's own configs, and the definitions of the heads. Layer-wise rates are computed from groups of three blocks.
"""

import copy
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from leaves import (
    BACKBONES,
    CONVNEXT_VARIANTS,
    EXPECTED,
    OUT_NORMS,
    assert_drop_path_grows_linearly,
    build_on_meta,
    load,
    lr_curve,
    parts_of,
)
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from dense.analysis.published import PUBLISHED, agrees

TABLES = ('Mask R-CNN 1x', 'Mask R-CNN 3x', 'Cascade Mask R-CNN 3x', 'RetinaNet 1x')
NAMES = [name for table in TABLES for name in EXPECTED[table]]
OWN = [name for name in NAMES if parts_of(name)['arch'] in BACKBONES]  # all but ResNet-50


@dataclass(frozen=True)
class Recipe:
    """What a published recipe prints.

    Attributes:
        pattern: Regular expression that the names of its rows match.
        optimizer: Type, learning rate, weight decay.
        undecayed: ``''`` for nothing, ``'norms'`` for norms and layer scale, ``'vectors'`` for all that is
            one-dimensional.
        decay_rate: Factor from a group of three blocks to the one before it.
        warmup: Iterations.
        epochs: Length; the rate falls to a tenth after each of ``steps``.
        steps: In epochs.
        amp: Mixed precision.
    """

    pattern: str
    optimizer: tuple[str, float, float]
    undecayed: str = ''
    decay_rate: float = 1.0
    warmup: int = 500
    epochs: int = 12
    steps: tuple[int, int] = (8, 11)
    amp: bool = False


LONG = dict(epochs=36, steps=(27, 33))
OF_CONVNEXT = dict(LONG, undecayed='vectors', warmup=1000, amp=True)
RECIPES = {
    'inceptionnext 1x': Recipe(r'mask-rcnn_inceptionnext-._fpn_1x', ('AdamW', 1e-4, 0.05), 'norms'),
    'convnext 1x': Recipe(r'mask-rcnn_convnext.*_fpn_1x', ('AdamW', 1e-4, 0.05), 'vectors', 0.95),
    'fasternet-s 1x': Recipe(r'mask-rcnn_fasternet-(t\d|s)_fpn_1x', ('AdamW', 2e-4, 1e-4)),
    'fasternet 1x': Recipe(r'mask-rcnn_fasternet-[ml]_fpn_1x', ('AdamW', 1e-4, 1e-4)),
    'r50 1x': Recipe(r'mask-rcnn_r50_fpn_1x', ('SGD', 0.02, 1e-4)),
    'convnext 3x': Recipe(r'mask-rcnn_.*_amp-ms', ('AdamW', 1e-4, 0.05), decay_rate=0.95, **OF_CONVNEXT),
    'fasternet-s 3x': Recipe(r'mask-rcnn_fasternet-(t\d|s)_fpn_ms', ('AdamW', 2e-4, 1e-4), **LONG),
    'fasternet 3x': Recipe(r'mask-rcnn_fasternet-[ml]_fpn_ms', ('AdamW', 1e-4, 1e-4), **LONG),
    'r50 3x': Recipe(r'mask-rcnn_r50_fpn_ms', ('SGD', 0.02, 1e-4), **LONG),
    'cascade': Recipe(r'cascade.*-[ts]_fpn', ('AdamW', 2e-4, 0.05), decay_rate=0.7, **OF_CONVNEXT),
    'cascade b': Recipe(r'cascade.*-b_fpn', ('AdamW', 2e-4, 0.05), decay_rate=0.8, **OF_CONVNEXT),
    'retinanet': Recipe(r'retinanet', ('AdamW', 1e-4, 1e-4)),
}
RECIPE = {
    name: key for key, recipe in RECIPES.items() for name in NAMES if re.match(recipe.pattern, name)
}  # row -> recipe
UPSTREAM = {  # recipe -> MMDetection's config with the same schedule and data
    **dict.fromkeys(
        ('inceptionnext 1x', 'convnext 1x', 'fasternet-s 1x', 'fasternet 1x', 'r50 1x'),
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    ),
    'convnext 3x': 'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
    **dict.fromkeys(('fasternet-s 3x', 'fasternet 3x'), 'swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'),
    'r50 3x': 'common/ms_3x_coco-instance.py',
    'cascade': 'convnext/cascade-mask-rcnn_convnext-s-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
    'cascade b': 'convnext/cascade-mask-rcnn_convnext-s-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
}
rows = pytest.mark.parametrize('name', NAMES)


def test_every_row_is_covered():
    fitting = {name: [key for key, recipe in RECIPES.items() if re.match(recipe.pattern, name)] for name in NAMES}
    assert [name for name, keys in fitting.items() if len(keys) != 1] == []
    assert set(RECIPE.values()) == set(RECIPES)
    assert set(UPSTREAM) == set(RECIPES)
    assert sorted(DROP_PATH) == sorted(OWN)


@cache
def upstream(file):
    path = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim' / 'configs' / file
    return Config.fromfile(path, import_custom_modules=False)


def row_of(key):
    """The config of a recipe's first row."""
    return load(next(name for name in NAMES if RECIPE[name] == key))


@cache
def groups_of(name):
    init_default_scope('mmdet')
    return build_optim_wrapper(build_on_meta(name), load(name).optim_wrapper).optimizer.param_groups


def setting_of(name, key):
    """What the optimizer has for ``key``, by the name of the parameter."""
    found = {id(parameter): group[key] for group in groups_of(name) for parameter in group['params']}
    assert len(found) == sum(len(group['params']) for group in groups_of(name))
    return {key: found[id(parameter)] for key, parameter in build_on_meta(name).named_parameters()}


@rows
def test_optimizer(name):
    recipe, wrapper = RECIPES[RECIPE[name]], load(name).optim_wrapper
    kind, rate, decay = recipe.optimizer
    rest = dict(betas=(0.9, 0.999)) if kind == 'AdamW' else dict(momentum=0.9)
    assert wrapper.optimizer == dict(type=kind, lr=rate, weight_decay=decay, **rest)
    assert wrapper.type == ('DenseAmpOptimWrapper' if recipe.amp else 'OptimWrapper')
    assert wrapper.get('clip_grad') is None and wrapper.get('accumulative_counts', 1) == 1


@pytest.mark.parametrize('key', RECIPES)
def test_learning_rate_over_time(key):
    recipe, names = RECIPES[key], [name for name in NAMES if RECIPE[name] == key]
    cfg = load(names[0])
    assert all(load(name).param_scheduler == cfg.param_scheduler for name in names)
    epoch = 150  # COCO has 7330 steps of 16 images; fewer tell the same
    first, second = (step * epoch for step in recipe.steps)
    shares = {0: 0.001, recipe.warmup // 2: 0.5, recipe.warmup: 1, first - 1: 1, first: 0.1}
    shares |= {second - 1: 0.1, second: 0.01, recipe.epochs * epoch - 1: 0.01}
    rates = lr_curve(cfg, epoch, shares)
    for iteration, share in shares.items():
        assert rates[iteration] == pytest.approx(recipe.optimizer[1] * share, rel=5e-3), iteration
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (recipe.epochs, 1)


def undecayed(model, rule):
    """Names of the parameters that a rule spares."""
    if rule == 'vectors':
        return {key for key, parameter in model.named_parameters() if len(parameter.shape) == 1}
    norms = {
        f'{prefix}.{key}'
        for prefix, module in model.named_modules()
        if 'Norm' in type(module).__name__
        for key, _ in module.named_parameters(recurse=False)
    }
    return norms | {key for key, _ in model.named_parameters() if key.endswith('.gamma')} if rule == 'norms' else set()


@rows
def test_weight_decay_of_every_parameter(name):
    recipe, model = RECIPES[RECIPE[name]], build_on_meta(name)
    decays, spared = setting_of(name, 'weight_decay'), undecayed(model, recipe.undecayed)
    assert bool(spared) is bool(recipe.undecayed)
    for key, decay in decays.items():
        assert decay == (0 if key in spared else recipe.optimizer[2]), key
    if recipe.undecayed == 'norms':
        blocks = sum(len(stage.blocks) for stage in model.backbone.stages)
        # One norm in the stem, each downsampling, each block and on each output; one scale in each block.
        assert len([key for key in spared if key.startswith('backbone.')]) == 2 * (1 + 3 + blocks + 4) + blocks


@rows
def test_learning_rate_of_every_parameter(name):
    recipe, model = RECIPES[RECIPE[name]], build_on_meta(name)
    rates = setting_of(name, 'lr')
    if recipe.decay_rate == 1:
        assert set(rates.values()) == {recipe.optimizer[1]}
        return
    depths = [len(stage.blocks) for stage in model.backbone.stages]
    num_groups = sum(depths) // 3
    assert sum(depths) % 3 == 0
    for key, rate in rates.items():
        place = re.match(r'backbone\.(?:stem|stages\.(\d)\.(?:downsample|blocks\.(\d+)))', key)
        before = sum(depths[: int(place[1])]) + int(place[2] or 0) if place and place[1] else 0
        group = num_groups + 1 if not place else before // 3 + 1 if place[1] else 0
        expected = recipe.optimizer[1] * recipe.decay_rate ** (num_groups + 1 - group)
        assert rate == pytest.approx(expected, rel=1e-9), key
    assert len(set(rates.values())) == num_groups + 2


SHORT_RATES = dict(zip('atsb', (0, 0.1, 0.2, 0.3), strict=True))
CONVNEXT_RATES = dict(zip('tsb', (0.2, 0.3, 0.4), strict=True))
LONG_RATES = dict(zip('atsb', (0.1, 0.4, 0.6, 0.7), strict=True))
FASTERNET_RATES = dict(zip(('t0', 't1', 't2', 's', 'm', 'l'), (0, 0.02, 0.05, 0.15, 0.2, 0.3), strict=True))
DROP_PATH = {
    **{f'mask-rcnn_inceptionnext-{arch}_fpn_1x_coco': rate for arch, rate in SHORT_RATES.items()},
    **{f'mask-rcnn_convnext-{arch}_fpn_1x_coco': rate for arch, rate in CONVNEXT_RATES.items()},
    **{f'mask-rcnn_{arch}_fpn_1x_coco': CONVNEXT_RATES['t'] for arch in CONVNEXT_VARIANTS},
    **{f'mask-rcnn_fasternet-{arch}_fpn_1x_coco': rate for arch, rate in FASTERNET_RATES.items()},
    **{f'mask-rcnn_fasternet-{arch}_fpn_ms-crop-3x_coco': rate for arch, rate in FASTERNET_RATES.items()},
    **{
        f'{method}_{family}-{arch}_fpn_amp-ms-crop-3x_coco': rate
        for method, family, archs in (
            ('mask-rcnn', 'inceptionnext', 'atsb'),
            ('mask-rcnn', 'convnext', 'tsb'),
            ('cascade-mask-rcnn', 'inceptionnext', 'tsb'),
            ('cascade-mask-rcnn', 'convnext', 'tsb'),
        )
        for arch, rate in LONG_RATES.items()
        if arch in archs
    },
    **dict.fromkeys(EXPECTED['RetinaNet 1x'], 0),
}


@pytest.mark.parametrize('name', OWN)
def test_drop_path_grows_linearly(name):
    assert_drop_path_grows_linearly(name, DROP_PATH[name])


@pytest.mark.parametrize('name', [name for name in OWN if RECIPE[name] in ('convnext 1x', 'convnext 3x', 'cascade')])
def test_layer_scale_starts_at_one(name):
    assert load(name).model.backbone.layer_scale_init_value == 1.0


@pytest.mark.parametrize('name', OWN)
def test_norms_of_the_outputs(name):
    backbone = build_on_meta(name).backbone
    levels = (1, 2, 3) if parts_of(name)['method'] == 'retinanet' else (0, 1, 2, 3)
    norms = {key: module for key, module in backbone.named_children() if key.startswith('out_norm')}
    # Only for the maps that the neck takes: a norm without a gradient would stop distributed training.
    assert list(norms) == [f'out_norm{i}' for i in levels] and backbone.out_indices == levels
    assert {type(norm) for norm in norms.values()} == {OUT_NORMS[type(backbone).__name__]}
    assert tuple(norm.weight.numel() for norm in norms.values()) == backbone.out_channels
    assert {norm.eps for norm in norms.values()} == ({1e-6} if type(backbone).__name__ == 'ConvNeXt' else {1e-5})


@pytest.mark.parametrize('name', [name for name in NAMES if name not in OWN])
def test_resnet_is_frozen_as_upstream(name):
    backbone = load(name).model.backbone
    assert backbone == upstream(UPSTREAM['r50 1x']).model.backbone
    frozen = {
        key.split('.')[0] for key, value in build_on_meta(name).backbone.named_parameters() if not value.requires_grad
    }
    assert frozen == {'conv1', 'bn1', 'layer1'}


# Without classifier and output norms, exact; S and B of ConvNeXt are 50,223,688 and 88,591,464 with last norm and
# classifier, ResNet-50 25,557,032 with the classifier.
LATER = {'convnext-s': 50_223_688, 'convnext-b': 88_591_464}


def parameters_of_backbone(arch, dims):
    if arch == 'r50':
        return 25_557_032 - 2049 * 1000
    row = next(row for key, row in PUBLISHED.items() if key.startswith(f'classifier_{arch}_'))
    if row.backbone_params:
        return row.backbone_params
    return (row.exact_params or LATER[arch]) - 2 * dims[3] - (dims[3] + 1) * 1000


def layer(size, wide, out):
    """Parameters of a convolution, or with size 1 of a linear layer, with bias."""
    return (size**2 * wide + 1) * out


def parameters_of_heads(method, dims):
    anchors, boxes = 3, 80 * 4
    pyramid = sum(layer(1, dim, 256) for dim in dims) + len(dims) * layer(3, 256, 256)
    if method == 'retinanet':
        pyramid += layer(3, dims[-1], 256) + layer(3, 256, 256)
        return pyramid + 8 * layer(3, 256, 256) + layer(3, 256, 9 * 80) + layer(3, 256, 9 * 4)
    proposals = layer(3, 256, 256) + layer(1, 256, anchors) + layer(1, 256, 4 * anchors)
    mask = 4 * layer(3, 256, 256) + layer(2, 256, 256) + layer(1, 256, 80)
    predictions = layer(1, 1024, 81) + layer(1, 1024, boxes)
    if method == 'mask-rcnn':
        return pyramid + proposals + layer(7, 256, 1024) + layer(1, 1024, 1024) + predictions + mask
    box = 4 * (9 * 256 * 256 + 2 * 256) + layer(7, 256, 1024) + predictions
    return pyramid + proposals + 3 * (box + mask)


@rows
def test_number_of_parameters_follows_from_the_definitions(name):
    said, cfg = parts_of(name), load(name)
    dims = list(cfg.channels)
    taken = dims[1:] if said['method'] == 'retinanet' else dims
    norms = 0 if said['arch'] == 'r50' else 2 * sum(taken)
    expected = parameters_of_backbone(said['arch'], dims) + norms + parameters_of_heads(said['method'], taken)
    assert sum(parameter.numel() for parameter in build_on_meta(name).parameters()) == expected


@pytest.mark.parametrize('name', [name for name in NAMES if name in PUBLISHED])
def test_number_of_parameters_is_the_published_one(name):
    millions = sum(parameter.numel() for parameter in build_on_meta(name).parameters()) / 1e6
    references = PUBLISHED[name].params_references()
    assert references and all(agrees(millions, figure, 0.005) for figure in references)


def plain(node):
    """Without what only tells how files are read, and with lists for tuples."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key not in ('backend_args', 'format_only')}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.parametrize('key', RECIPES)
def test_model_is_upstreams(key):
    ours = plain(row_of(key).model)
    file = UPSTREAM['r50 1x'] if key == 'r50 3x' else UPSTREAM[key]
    theirs = plain(upstream(file).model)
    for model in (ours, theirs):
        del model['backbone'], model['neck']['in_channels']
    assert theirs['neck'].pop('start_level', 0) == (1 if key == 'retinanet' else 0)  # our backbone leaves it out
    assert ours == theirs


@pytest.mark.parametrize('key', RECIPES)
def test_data_and_schedule_are_upstreams(key):
    ours, theirs = plain(row_of(key).to_dict()), plain(upstream(UPSTREAM[key]).to_dict())
    if key == 'r50 3x':  # 12 epochs of three repetitions
        repeated = theirs['train_dataloader']['dataset']
        assert repeated['type'] == 'RepeatDataset' and repeated['times'] == 3
        theirs['train_dataloader']['dataset'] = repeated['dataset']
        theirs['train_cfg']['max_epochs'] *= 3
        step = theirs['param_scheduler'][1]
        step.update(end=3 * step['end'], milestones=[3 * epoch for epoch in step['milestones']])
        for split in ('val', 'test'):
            theirs[f'{split}_evaluator']['metric'] = ['bbox', 'segm']  # that file is shared with detectors of boxes
    if key.endswith('3x') and 'fasternet' in key:
        theirs['param_scheduler'][0]['end'] = 500  # FasterNet's own warm-up
    for split in ('val', 'test'):
        assert theirs[f'{split}_evaluator']['type'] == 'CocoMetric'
        theirs[f'{split}_evaluator']['type'] = 'DenseCocoMetric'  # the same numbers: tests/test_evaluation.py
    for split in ('train', 'val', 'test'):
        assert ours[f'{split}_dataloader'] == theirs[f'{split}_dataloader']
    for part in ('train_cfg', 'param_scheduler', 'auto_scale_lr', 'val_evaluator', 'test_evaluator'):
        assert ours[part] == theirs[part], part


@rows
def test_images_per_step(name):
    cfg = load(name)
    assert 8 * cfg.train_dataloader.batch_size == 16 == cfg.auto_scale_lr.base_batch_size
    assert cfg.auto_scale_lr.enable is False


@pytest.mark.parametrize('shape', [(480, 640), (640, 425), (200, 900)], ids=str)
@pytest.mark.parametrize('key', RECIPES)
def test_size_at_test_time(key, shape, tmp_path):
    """The shorter side is 800, unless the longer one would be above 1333; then zeros up to multiples of 32."""
    cfg = row_of(key)
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((*shape, 3), np.uint8))
    init_default_scope('mmdet')
    steps = [step for step in copy.deepcopy(cfg.test_dataloader.dataset.pipeline) if step['type'] != 'LoadAnnotations']
    sample = Compose(steps)(dict(img_path=str(tmp_path / 'photo.png'), img_id=0))
    factor = min(800 / min(shape), 1333 / max(shape))
    expected = tuple(int(side * factor + 0.5) for side in shape)
    assert tuple(sample['inputs'].shape[1:]) == expected
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    padded = preprocessor(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))['inputs']
    assert tuple(padded.shape[2:]) == tuple(-(-side // 32) * 32 for side in expected)
