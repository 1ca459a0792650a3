"""Is every config what its name says, and is it written the way all of them are?"""

import ast
import importlib.util
import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from leaves import BACKBONES, BASES, BY_NAME, CONFIGS, EXPECTED, FILES, LEAVES, find_all, load, parts_of
from mmengine.config import Config

import backbones
from backbones.weights import WEIGHTS

METHODS = {  # type of the model, and a head that only this method has
    'mask-rcnn': ('MaskRCNN', 'FCNMaskHead'),
    'cascade-mask-rcnn': ('CascadeRCNN', 'CascadeRoIHead'),
    'retinanet': ('RetinaNet', 'RetinaHead'),
    'upernet': ('EncoderDecoder', 'UPerHead'),
    'semantic-fpn': ('EncoderDecoder', 'FPNHead'),
    'classifier': ('ImageClassifier', None),
}
SEGMENTATION = {'upernet', 'semantic-fpn'}
DATASETS = {  # types, root, and the number of classes where the data set fixes it
    'coco': ({'CocoDataset'}, 'data/coco', {80}),
    'ade20k': ({'ADE20KDataset'}, 'data/ade/ADEChallengeData2016', {150}),
    'in1k': ({'ImageFolderDataset'}, 'data/imagenet', {1000}),
    'own': ({'CocoFolderDataset', 'SegFolderDataset', 'ImageFolderDataset'}, 'data/own', None),
    'mini': ({'CocoFolderDataset', 'SegFolderDataset'}, 'data/mini', None),
}


@cache
def statements(path):
    body = ast.parse(path.read_text()).body
    is_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return body[1:] if is_docstring else body


def assigned(path):
    return [target.id for node in statements(path) for target in getattr(node, 'targets', [])]


def bases_of(path):
    for node in statements(path):
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [(path.parent / base).resolve() for base in ([value] if isinstance(value, str) else value)]
    return []


def top_level_keys(path):
    keys = set(assigned(path)) - {'_base_'}
    return keys.union(*(top_level_keys(base) for base in bases_of(path)))


def name_of(path):
    return path.stem


leaves = pytest.mark.parametrize('name', sorted(BY_NAME))


def test_every_row_of_the_tables_has_its_leaf():
    expected = [name for names in EXPECTED.values() for name in names]
    assert len(expected) == len(set(expected))
    assert sorted(BY_NAME) == sorted(expected)


@leaves
def test_method(name):
    said, cfg = parts_of(name), load(name)
    model, head = METHODS[said['method']]
    assert cfg.model.type == model
    assert head is None or head in find_all(cfg.model, 'type')
    folder = 'imagenet' if said['method'] == 'classifier' else said['method'].replace('-', '_')
    assert BY_NAME[name].parent.name == ('mini' if said['dataset'] == 'mini' else folder)


@leaves
def test_architecture(name):
    arch, backbone = parts_of(name)['arch'], load(name).model.backbone
    if arch == 'r50':
        assert backbone.type in ('ResNet', 'ResNetV1c') and backbone.depth == 50
        return
    assert (backbone.type, backbone.arch) == BACKBONES[arch]


@leaves
def test_wiring(name):
    """Neck and heads take the channels that the backbone gives."""
    said, model = parts_of(name), load(name).model
    if said['arch'] == 'r50':
        dims = [256, 512, 1024, 2048]
    else:
        family, arch = BACKBONES[said['arch']]
        dims = list(getattr(backbones, family).ARCHS[arch].dims)
    if said['neck']:
        assert said['neck'] == model.neck.type.lower()
    if said['neck'] or said['method'] == 'semantic-fpn':
        assert list(model.neck.in_channels) == [dims[i] for i in model.backbone.get('out_indices', range(4))]
    elif said['method'] == 'upernet':
        assert list(model.decode_head.in_channels) == dims
        assert model.auxiliary_head.in_channels == dims[2]


@leaves
def test_published_weights_are_of_this_network(name):
    backbone = load(name).model.backbone
    if not backbone.get('init_cfg') or backbone.type not in backbones.__all__:
        return
    assert backbone.init_cfg.type == 'Pretrained'
    record = WEIGHTS[backbone.init_cfg.checkpoint]
    assert (record.family, record.arch) == (backbone.type, backbone.arch)


@leaves
def test_schedule(name):
    said, cfg = parts_of(name), load(name)
    number, unit = int(said['length']), said['unit']
    by_epoch = unit in 'xe'
    if by_epoch:
        epochs = number * {'x': 12, 'e': 1}[unit]
        repeats = cfg.train_dataloader.dataset.get('times', 1)  # mmdet's multi-scale 3x repeats the data set
        assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs * repeats) == ('EpochBasedTrainLoop', epochs)
        assert cfg.train_dataloader.sampler.type == 'DefaultSampler'
    else:
        length = number * {'i': 1, 'k': 1000}[unit]
        assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', length)
        assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    assert cfg.default_hooks.checkpoint.by_epoch is by_epoch
    assert cfg.log_processor.by_epoch is by_epoch
    end = cfg.param_scheduler[-1].end
    assert end == (cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters)


@leaves
def test_precision(name):
    wrapper = load(name).optim_wrapper.type
    assert wrapper == ('DenseAmpOptimWrapper' if parts_of(name)['amp'] else 'OptimWrapper') or (
        parts_of(name)['method'] == 'classifier'
    )


@leaves
def test_batch_size(name):
    said, cfg = parts_of(name), load(name)
    batch = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    if said['gpus']:
        assert cfg.train_dataloader.batch_size == int(said['batch'])
        assert cfg.auto_scale_lr.base_batch_size == int(said['gpus']) * batch
    elif said['unit'] == 'x':
        assert batch == 2
        assert cfg.auto_scale_lr.base_batch_size == 8 * 2


@leaves
def test_dataset(name):
    said, cfg = parts_of(name), load(name)
    types, root, counts = DATASETS[said['dataset']]
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset = dataset.get('dataset', dataset)
        assert dataset.type in types
        assert dataset.data_root.rstrip('/') == cfg.data_root.rstrip('/') == root
    scope = 'mmseg' if said['method'] in SEGMENTATION else 'mmdet'
    assert cfg.default_scope == ('mmengine' if said['method'] == 'classifier' else scope)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        for part in evaluator if isinstance(evaluator, list) else [evaluator]:
            assert part.get('ann_file', root).startswith(root)
    if counts:
        assert set(find_all(cfg.model, 'num_classes')) <= counts


@leaves
def test_size(name):
    said, cfg = parts_of(name), load(name)
    # Segmentation and classification name height x width of the crop; detection the largest side after resizing.
    size = (int(said['height']), int(said['width'])) if said['height'] else (1333, 800)
    train, test = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    if said['method'] in SEGMENTATION:
        assert [tuple(crop) for crop in find_all(train, 'crop_size')] == [size]
        assert tuple(cfg.model.data_preprocessor.size) == size
    elif said['method'] == 'classifier':
        assert find_all(cfg.val_dataloader, 'size') == [size[0]]
        later = [hook.size for hook in cfg.get('custom_hooks', []) if hook.type == 'TrainSizeHook']
        assert [*find_all(train, 'size'), *later][-1] == size[0]
    elif said['scales']:
        longest = [max(scale) for scale in find_all(test, 'scale')]
        assert longest == [size[0]]
    else:
        assert [tuple(scale) for scale in find_all(train, 'scale')] == [size]
        assert [tuple(scale) for scale in find_all(test, 'scale')] == [size]


@pytest.mark.parametrize('path', LEAVES, ids=name_of)
def test_leaf_is_bases_and_wiring(path):
    assert assigned(path) == ['_base_', 'model']
    assert len(statements(path)) == 2
    assert bases_of(path)[1].parent.name == 'backbones'


def test_no_leaf_is_inherited():
    inherited = [base for path in FILES for base in bases_of(path)]
    assert set(inherited) <= set(BASES)
    unused = [path for path in BASES if path not in inherited]
    assert not unused, f'bases that nothing inherits: {unused}'


@pytest.mark.parametrize('path', [path for path in FILES if len(bases_of(path)) > 1], ids=name_of)
def test_sibling_bases_share_no_key(path):
    # What two siblings inherit alike (a common base) would be an error as well: MMEngine refuses it.
    for first, second in combinations(bases_of(path), 2):
        assert not top_level_keys(first) & top_level_keys(second), f'{first.name} and {second.name}'


@pytest.mark.parametrize('path', BASES, ids=name_of)
def test_base_says_what_it_mirrors(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    for package, file in re.findall(r'\b(mmdet|mmseg)[^`.]*`(configs/[^`]+\.py)`', text):
        origin = Path(importlib.util.find_spec(package).origin)
        assert (origin.parent / '.mim' / file).is_file(), f'{package} has no {file}'


@pytest.mark.parametrize(
    ('path', 'package'),
    [
        ('models/mask_rcnn_fpn.py', 'mmdet'),
        ('models/upernet.py', 'mmseg'),
        ('datasets/coco_instance.py', 'mmdet'),
        ('datasets/ade20k_512x512.py', 'mmseg'),
        ('schedules/adamw_1x.py', 'mmdet'),
        ('schedules/adamw_160k.py', 'mmseg'),
        ('runtime/det.py', 'mmdet'),
        ('runtime/seg.py', 'mmseg'),
        ('upernet_ade20k_160k.py', 'mmseg'),
    ],
)
def test_published_base_names_its_origin(path, package):
    text = ast.get_docstring(ast.parse((CONFIGS / '_base_' / path).read_text()))
    assert re.search(rf'Mirrors {package} `configs/', text)


@pytest.mark.parametrize('short', sorted(BACKBONES))
def test_backbone_base(short):
    family, arch = BACKBONES[short]
    path = CONFIGS / '_base_' / 'backbones' / f'{family.lower()}_{arch}.py'
    assert assigned(path) == ['backbone', 'channels']
    cfg = Config.fromfile(path)
    assert (cfg.backbone.type, cfg.backbone.arch) == (family, arch)
    assert tuple(cfg.channels) == getattr(backbones, family).ARCHS[arch].dims
