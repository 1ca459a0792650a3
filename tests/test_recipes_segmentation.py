"""Are the numbers of the segmentation configs those of the published recipes?

The references are the papers' figures (InceptionNeXt: Tables 6, 7 and 10; FasterNet: Tables 6 and 7), MMSegmentation's
own configs, and the definitions of the heads.
"""

import copy
import importlib.util
import re
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from leaves import (
    BACKBONES,
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
from mmengine.registry import init_default_scope

import backbones
from dense.data.run_inputs import RunInputs
from dense.engine.launch import load_config
from dense.engine.run_defaults import add_test_defaults

NAMES = EXPECTED['UperNet 160k'] + EXPECTED['Semantic FPN 40k']
# Recipe -> its rows, told apart by the names alone.
SWIN = [name for name in NAMES if re.match(r'upernet_(inceptionnext|fasternet)', name)]
CONVNEXT = [name for name in NAMES if name.startswith('upernet_convnext')]
SGD = [name for name in NAMES if name.startswith('upernet_r50')]
FPN = [name for name in NAMES if name.startswith('semantic-fpn')]
# Recipe -> MMSegmentation's config of the same recipe.
UPSTREAM = {
    'swin': 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'convnext': 'convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
    'sgd': 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    'fpn': 'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py',
}
RECIPE = {
    **dict.fromkeys(SWIN, 'swin'),
    **dict.fromkeys(CONVNEXT, 'convnext'),
    **dict.fromkeys(SGD, 'sgd'),
    **dict.fromkeys(FPN, 'fpn'),
}
rows = pytest.mark.parametrize('name', NAMES)
OWN = [name for name in NAMES if parts_of(name)['arch'] in BACKBONES]  # all but ResNet-50


def test_every_row_is_covered():
    assert sorted(RECIPE) == sorted(NAMES)
    assert sorted(DROP_PATH) == sorted(OWN)
    assert sorted(BACKBONE_PARAMETERS) == sorted({parts_of(name)['arch'] for name in NAMES})
    assert sorted(PUBLISHED) == sorted(
        name for name in NAMES if not re.search('fasternet|inceptionnext-a|upernet_r50', name)
    )


@cache
def upstream(recipe):
    path = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'configs' / UPSTREAM[recipe]
    return Config.fromfile(path, import_custom_modules=False)


@cache
def groups_of(name):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    return build_optim_wrapper(build_on_meta(name), cfg.optim_wrapper).optimizer.param_groups


def setting_of(name, key):
    """What the optimizer has for ``key``, by the name of the parameter."""
    found = {id(parameter): group[key] for group in groups_of(name) for parameter in group['params']}
    return {key: found[id(parameter)] for key, parameter in build_on_meta(name).named_parameters()}


OPTIMIZERS = {  # type, learning rate, weight decay
    'swin': ('AdamW', 6e-5, 0.01),
    'convnext': ('AdamW', 1e-4, 0.05),
    'sgd': ('SGD', 0.01, 5e-4),
    'fpn': ('AdamW', 2e-4, 1e-4),
}


@rows
def test_optimizer(name):
    wrapper, reference = load(name).optim_wrapper, upstream(RECIPE[name]).optim_wrapper
    optimizer = dict(wrapper.optimizer)
    assert (optimizer['type'], optimizer['lr'], optimizer['weight_decay']) == OPTIMIZERS[RECIPE[name]]
    if optimizer['type'] == 'AdamW':
        assert optimizer.pop('betas') == (0.9, 0.999)
    assert optimizer == {key: value for key, value in reference.optimizer.items() if key != 'betas'}
    assert wrapper.get('clip_grad') is None and wrapper.get('accumulative_counts', 1) == 1


RATES = {  # share of the full rate at named iterations: warm-up, half, end
    'swin': {0: 1e-6, 750: 0.5, 1500: 1.0, 80750: 0.5, 159999: 0},
    'convnext': {0: 1e-6, 750: 0.5, 1500: 1.0, 80750: 0.5, 159999: 0},
    'sgd': {0: 1.0, 80000: 0.01 + 0.99 * 0.5**0.9, 159999: 0.01},
    'fpn': {0: 1.0, 10000: 0.75**0.9, 20000: 0.5**0.9, 39999: 0},
}


@pytest.mark.parametrize('recipe', UPSTREAM)
def test_learning_rate_over_time(recipe):
    names = [name for name in NAMES if RECIPE[name] == recipe]
    cfg = load(names[0])
    assert all(load(name).param_scheduler == cfg.param_scheduler for name in names)  # one schedule, from one base
    full = OPTIMIZERS[recipe][1]
    rates = lr_curve(cfg, 1, RATES[recipe])
    for iteration, share in RATES[recipe].items():
        assert rates[iteration] == pytest.approx(full * share, rel=2e-3, abs=1e-5 * full), iteration
    length = max(RATES[recipe]) + 1
    assert cfg.train_cfg.max_iters == upstream(recipe).train_cfg.max_iters == length
    assert cfg.train_cfg.val_interval == upstream(recipe).train_cfg.val_interval == length // 10


@pytest.mark.parametrize('name', SWIN)
def test_undecayed_parameters_are_norms_and_layer_scale(name):
    model, decay = build_on_meta(name), setting_of(name, 'weight_decay')
    assert set(setting_of(name, 'lr').values()) == {6e-5}
    norms = {
        f'{prefix}.{key}'
        for prefix, module in model.named_modules()
        if 'Norm' in type(module).__name__
        for key, _ in module.named_parameters(recurse=False)
    }
    scales = {key for key in decay if key.endswith('.gamma')}
    family, arch = BACKBONES[parts_of(name)['arch']]
    blocks = sum(getattr(backbones, family).ARCHS[arch].depths)
    assert len(scales) == (blocks if family == 'InceptionNeXt' else 0)
    # One norm in the stem, each downsampling, each block and on each output.
    assert len([key for key in norms if key.startswith('backbone.')]) == 2 * (1 + 3 + blocks + 4)
    assert {key for key, value in decay.items() if value == 0} == norms | scales
    assert {value for key, value in decay.items() if key not in norms | scales} == {0.01}


# Rate of the stem and all downsamplings, then of the blocks of each stage; output norms and heads have the full one.
STAGE_FACTORS = {
    'convnext-t': (0.478, 0.531, 0.590, 0.656, 0.729),  # 6 groups
    'convnext-s': (0.254, 0.282, 0.314, 0.349, 0.387),  # 12 groups
    'convnext-b': (0.254, 0.282, 0.314, 0.349, 0.387),
}


@pytest.mark.parametrize('name', CONVNEXT)
def test_convnexts_rates_grow_stage_by_stage(name):
    factors = STAGE_FACTORS[parts_of(name)['arch']]
    seen = set()
    for key, rate in setting_of(name, 'lr').items():
        block = re.match(r'backbone\.stages\.(\d)\.blocks', key)
        is_low = re.match(r'backbone\.(stem|stages\.\d\.downsample)', key)
        expected = factors[int(block[1]) + 1] if block else factors[0] if is_low else 1.0
        assert rate == pytest.approx(1e-4 * expected, rel=2e-3), key
        seen.add(expected)
    assert seen == {*factors, 1.0}


@pytest.mark.parametrize('name', CONVNEXT)
def test_convnext_does_not_decay_vectors(name):
    decay = setting_of(name, 'weight_decay')
    for key, parameter in build_on_meta(name).named_parameters():
        assert decay[key] == (0 if parameter.ndim == 1 else 0.05), key
    assert set(decay.values()) == {0, 0.05}


@pytest.mark.parametrize('name', SGD + FPN)
def test_every_parameter_is_treated_alike(name):
    _, rate, decay = OPTIMIZERS[RECIPE[name]]
    assert set(setting_of(name, 'lr').values()) == {rate}
    assert set(setting_of(name, 'weight_decay').values()) == {decay}


DROP_PATH = {
    **dict(zip(EXPECTED['UperNet 160k'][:4], (0.1, 0.2, 0.3, 0.4), strict=True)),  # A as on ImageNet; Table 10
    **dict(zip(EXPECTED['UperNet 160k'][4:7], (0.15, 0.2, 0.3), strict=True)),  # FasterNet's rates on COCO
    **dict(zip(CONVNEXT, (0.4, 0.3, 0.4), strict=True)),
    **dict(zip(FPN[:4], (0, 0.1, 0.2, 0.2), strict=True)),  # A continues the row; Table 10
    **dict(zip(FPN[4:10], (0, 0.02, 0.05, 0.1, 0.2, 0.3), strict=True)),  # FasterNet's rates on ImageNet
}


@pytest.mark.parametrize('name', OWN)
def test_drop_path_grows_linearly(name):
    assert_drop_path_grows_linearly(name, DROP_PATH[name])


@pytest.mark.parametrize('name', CONVNEXT)
def test_layer_scale_starts_at_one(name):
    assert load(name).model.backbone.layer_scale_init_value == 1.0


@pytest.mark.parametrize('name', OWN)
def test_norms_of_the_outputs(name):
    backbone = build_on_meta(name).backbone
    norms = [getattr(backbone, f'out_norm{i}') for i in range(4)]
    assert [type(norm) for norm in norms] == [OUT_NORMS[type(backbone).__name__]] * 4
    assert tuple(norm.weight.numel() for norm in norms) == backbone.out_channels
    assert {norm.eps for norm in norms} == ({1e-6} if type(backbone).__name__ == 'ConvNeXt' else {1e-5})


# Without classifier and output norms, exact. InceptionNeXt, FasterNet: counted from the published code. ConvNeXt: the
# whole networks' 28,589,128, 50,223,688 and 88,591,464 less last norm and classifier. ResNet-50: 25,557,032 less the
# classifier, with three convolutions in the stem.
BACKBONE_PARAMETERS = {
    **dict(zip([f'inceptionnext-{arch}' for arch in 'atsb'], (2885440, 23974296, 45292632, 80444192), strict=True)),
    **dict(zip([f'fasternet-{arch}' for arch in ('t0', 't1', 't2')], (2214900, 5659008, 12718848), strict=True)),
    **dict(zip([f'fasternet-{arch}' for arch in 'sml'], (28589312, 50765904, 90218112), strict=True)),
    'convnext-t': 28589128 - 2 * 768 - 769000,
    'convnext-s': 50223688 - 2 * 768 - 769000,
    'convnext-b': 88591464 - 2 * 1024 - 1025000,
    'r50': 25557032 - 2049000 - (9408 + 2 * 64) + (864 + 9216 + 18432 + 2 * (32 + 32 + 64)),
}


def with_norm(*weights):
    """Parameters of bias-free convolutions ``(kernel, in, out)`` with a batch norm each."""
    return sum(kernel**2 * wide * out + 2 * out for kernel, wide, out in weights)


def heads_of_upernet(dims):
    pooling = [(1, dims[3], 512)] * 4 + [(3, dims[3] + 4 * 512, 512)]
    pyramid = [(1, dim, 512) for dim in dims[:3]] + [(3, 512, 512)] * 3 + [(3, 4 * 512, 512)]
    return with_norm(*pooling, *pyramid, (3, dims[2], 256)) + (512 + 1) * 150 + (256 + 1) * 150


def heads_of_semantic_fpn(dims):
    neck = sum((dim + 1) * 256 for dim in dims) + 4 * (9 * 256 + 1) * 256
    # Strides 4 and 8 need one convolution to get to stride 4, 16 two, 32 three.
    return neck + with_norm(*[(3, 256, 128)] * 4, *[(3, 128, 128)] * 3) + (128 + 1) * 150


@rows
def test_number_of_parameters_follows_from_the_definitions(name):
    said, model = parts_of(name), build_on_meta(name)
    dims = load(name).model.neck.in_channels if RECIPE[name] == 'fpn' else load(name).model.decode_head.in_channels
    heads = heads_of_semantic_fpn(dims) if RECIPE[name] == 'fpn' else heads_of_upernet(dims)
    norms = 0 if said['arch'] == 'r50' else 2 * sum(dims)
    expected = BACKBONE_PARAMETERS[said['arch']] + norms + heads
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# Millions, as the tables print them (Tables 6 and 7), and with two more digits where they are known.
PUBLISHED = {
    **dict(zip(EXPECTED['UperNet 160k'][1:4], ((56, 56.40), (78, 77.72), (115, 114.98)), strict=True)),
    **dict(zip(CONVNEXT, ((60, 60.2), (82, None), (122, None)), strict=True)),
    **dict(zip(FPN[1:4], ((28, 28.35), (50, 49.67), (85, 84.94)), strict=True)),
    FPN[10]: (29, None),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    printed, exact = PUBLISHED[name]
    millions = sum(parameter.numel() for parameter in build_on_meta(name).parameters()) / 1e6
    assert round(millions) == printed
    assert exact is None or millions == pytest.approx(exact, rel=0.005)


@rows
def test_heads_and_test_mode_are_upstreams(name):
    model, reference = load(name).model, upstream(RECIPE[name]).model
    for part in ('neck', 'decode_head', 'auxiliary_head'):
        ours, theirs = model.get(part), reference.get(part)
        if part == 'neck' or RECIPE[name] != 'fpn':
            ours, theirs = ({**(head or {}), 'in_channels': None} for head in (ours, theirs))
        assert ours == theirs
    assert model.data_preprocessor == reference.data_preprocessor
    assert model.test_cfg == reference.test_cfg
    assert model.test_cfg.mode == ('slide' if RECIPE[name] == 'convnext' else 'whole')
    if RECIPE[name] == 'convnext':
        assert (model.test_cfg.crop_size, model.test_cfg.stride) == ((512, 512), (341, 341))


def without_label_option(pipeline):
    """Upstream repeats in its pipelines what the data set's class says."""
    return [{key: value for key, value in step.items() if key != 'reduce_zero_label'} for step in pipeline]


@rows
def test_data_is_upstreams(name):
    cfg, reference = load(name), upstream(RECIPE[name])
    theirs = reference.train_dataloader.dataset.get('dataset', reference.train_dataloader.dataset)
    assert cfg.train_dataloader.dataset.pipeline == without_label_option(theirs.pipeline)
    for split in ('val', 'test'):
        ours, theirs = cfg[f'{split}_dataloader'], reference[f'{split}_dataloader']
        assert ours.dataset.pipeline == without_label_option(theirs.dataset.pipeline)
        assert (ours.batch_size, ours.dataset.data_prefix) == (theirs.batch_size, theirs.dataset.data_prefix)
        assert reference[f'{split}_evaluator'].type == 'IoUMetric'
        # The same numbers: tests/test_iou.py
        assert cfg[f'{split}_evaluator'] == dict(reference[f'{split}_evaluator'], type='DenseIoUMetric')


@rows
def test_images_per_step(name):
    cfg, said = load(name), parts_of(name)
    total = {'swin': 16, 'convnext': 16, 'sgd': 16, 'fpn': 32}[RECIPE[name]]
    assert int(said['gpus']) * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == total
    assert cfg.auto_scale_lr.enable is False


RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@rows
def test_scales_of_multi_scale_testing(name):
    cfg = load(name)
    assert cfg.tta_model.type == 'SegTTAModel'
    scales, *align, flips, _, _ = cfg.tta_pipeline[1].transforms
    assert [tuple(item.scale) for item in scales] == [(int(2048 * ratio), int(512 * ratio)) for ratio in RATIOS]
    assert [(item.prob, item.direction) for item in flips] == [(0.0, 'horizontal'), (1.0, 'horizontal')]
    assert align == ([[dict(type='ResizeToMultiple', size_divisor=32)]] if RECIPE[name] == 'fpn' else [])


def sizes_of_inputs(cfg, pipeline, path):
    """Height and width of every image that a test pipeline gives to the network."""
    init_default_scope(cfg.default_scope)
    # The truth plays no part in the size.
    steps = [step for step in pipeline if step['type'] != 'LoadAnnotations']
    if steps[-1]['type'] == 'TestTimeAug':
        transforms = [part for part in steps[-1].transforms if part[0]['type'] != 'LoadAnnotations']
        steps[-1] = dict(steps[-1], transforms=transforms)
    inputs = Compose(copy.deepcopy(steps))(dict(img_path=str(path)))['inputs']
    return [tuple(image.shape[1:]) for image in (inputs if isinstance(inputs, list) else [inputs])]


@pytest.mark.parametrize('shape', [(300, 400), (403, 300), (100, 700)], ids=str)
@pytest.mark.parametrize('name', [SWIN[0], CONVNEXT[0], SGD[0], FPN[0], FPN[4], FPN[10]])
def test_size_at_test_time(name, shape, tmp_path):
    """The shorter side is 512, unless the longer one would be above 2048; Semantic FPN rounds up to multiples of 32."""
    cfg = load(name)
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((*shape, 3), np.uint8))

    def expected(ratio):
        factor = ratio * min(512 / min(shape), 2048 / max(shape))
        size = [int(side * factor + 0.5) for side in shape]
        return tuple(-(-side // 32) * 32 for side in size) if RECIPE[name] == 'fpn' else tuple(size)

    single = sizes_of_inputs(cfg, cfg.test_dataloader.dataset.pipeline, tmp_path / 'photo.png')
    assert single == [expected(1)]
    multi = sizes_of_inputs(cfg, cfg.tta_pipeline, tmp_path / 'photo.png')
    assert multi == [expected(ratio) for ratio in RATIOS for _ in ('as it is', 'flipped')]


@rows
def test_every_scale_of_multi_scale_testing_is_predicted_whole(name):
    single, multi = (load_config(load(name).filename) for _ in range(2))
    add_test_defaults(single, RunInputs.read(single, ()))
    add_test_defaults(multi, RunInputs.read(multi, ()), tta=True)
    assert single.model == load(name).model
    assert multi.model.type == 'SegTTAModel'
    assert multi.model.module.test_cfg.mode == 'whole'
    assert {**multi.model.module, 'test_cfg': None} == {**single.model, 'test_cfg': None}
    assert multi.test_dataloader.dataset.dataset.pipeline == load(name).tta_pipeline
