"""Is every config what its name says, and is it written the way all of them are?"""

import ast
import importlib.util
import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from mmengine.config import Config

from backbones import InceptionNeXt

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(CONFIGS.rglob('*.py'))
BASES = [path for path in FILES if '_base_' in path.parts]
LEAVES = [path for path in FILES if '_base_' not in path.parts]
NUM_LEAVES = 13  # 4 Mask R-CNN 1x, 4 UperNet 160k, 3 for real data at small size, 2 for the mini data set

NAME = re.compile(
    r'(?P<method>[a-z-]+)_(?P<arch>inceptionnext-[atsb])(_(?P<neck>fpn))?'
    r'_((?P<gpus>\d+)xb(?P<batch>\d+)-)?(?P<schedule>\d+[xik])'
    r'_(?P<dataset>[a-z0-9]+)(-(?P<height>\d+)x(?P<width>\d+))?'
)
METHODS = {'mask-rcnn': ('MaskRCNN', 'FCNMaskHead'), 'upernet': ('EncoderDecoder', 'UPerHead')}
ARCHS = {'a': 'atto', 't': 'tiny', 's': 'small', 'b': 'base'}
DATASETS = {  # types, root, and the number of classes where the data set fixes it
    'coco': ({'CocoDataset'}, 'data/coco', {80}),
    'ade20k': ({'ADE20KDataset'}, 'data/ade/ADEChallengeData2016', {150}),
    'own': ({'CocoFolderDataset', 'SegFolderDataset'}, 'data/own', None),
    'mini': ({'CocoFolderDataset', 'SegFolderDataset'}, 'data/mini', None),
}


@cache
def load(path):
    return Config.fromfile(path)


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


def find_all(node, key):
    """Every value of ``key`` anywhere below ``node``."""
    found = []
    if isinstance(node, dict):
        found += [node[key]] if key in node else []
        node = list(node.values())
    if isinstance(node, list | tuple):
        found += [value for item in node for value in find_all(item, key)]
    return found


def name_of(path):
    return path.stem


leaves = pytest.mark.parametrize('path', LEAVES, ids=name_of)


def test_number_of_leaves():
    assert len(LEAVES) == NUM_LEAVES


@leaves
def test_name_follows_the_grammar(path):
    assert NAME.fullmatch(path.stem), f'{path.stem} is not method_arch[_neck][_AxbB-]schedule_dataset[-size]'


@leaves
def test_method(path):
    said, model = NAME.fullmatch(path.stem), load(path).model
    detector, head = METHODS[said['method']]
    assert model.type == detector
    assert head in find_all(model, 'type')
    assert path.parent.name in (said['method'].replace('-', '_'), said['dataset'])


@leaves
def test_architecture_and_wiring(path):
    said, model = NAME.fullmatch(path.stem), load(path).model
    arch = ARCHS[said['arch'][-1]]
    dims = list(InceptionNeXt.ARCHS[arch].dims)
    assert (model.backbone.type, model.backbone.arch) == ('InceptionNeXt', arch)
    if said['method'] == 'upernet':
        assert list(model.decode_head.in_channels) == dims
        assert model.auxiliary_head.in_channels == dims[2]
    else:
        assert said['neck'] == model.neck.type.lower()
        assert list(model.neck.in_channels) == dims
    if model.backbone.get('init_cfg'):
        assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'inceptionnext_{arch}')


@leaves
def test_schedule(path):
    said, cfg = NAME.fullmatch(path.stem), load(path)
    number, unit = int(said['schedule'][:-1]), said['schedule'][-1]
    if unit == 'x':
        assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('EpochBasedTrainLoop', 12 * number)
        assert cfg.train_dataloader.sampler.type == 'DefaultSampler'
    else:
        length = number * {'i': 1, 'k': 1000}[unit]
        assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ('IterBasedTrainLoop', length)
        assert cfg.train_dataloader.sampler.type == 'InfiniteSampler'
    by_epoch = unit == 'x'
    assert cfg.default_hooks.checkpoint.by_epoch is by_epoch
    assert cfg.log_processor.by_epoch is by_epoch
    end = cfg.param_scheduler[-1].end
    assert end == (cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters)


@leaves
def test_batch_size(path):
    said, cfg = NAME.fullmatch(path.stem), load(path)
    if said['gpus']:
        assert cfg.train_dataloader.batch_size == int(said['batch'])
        assert cfg.auto_scale_lr.base_batch_size == int(said['gpus']) * int(said['batch'])
    elif said['schedule'].endswith('x'):
        assert cfg.train_dataloader.batch_size == 2
        assert cfg.auto_scale_lr.base_batch_size == 8 * 2


@leaves
def test_dataset(path):
    said, cfg = NAME.fullmatch(path.stem), load(path)
    types, root, counts = DATASETS[said['dataset']]
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.type in types
        assert dataset.data_root.rstrip('/') == cfg.data_root.rstrip('/') == root
    assert cfg.default_scope == ('mmseg' if said['method'] == 'upernet' else 'mmdet')
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.get('ann_file', root).startswith(root)
    if counts:
        assert set(find_all(cfg.model, 'num_classes')) <= counts


@leaves
def test_size(path):
    said, cfg = NAME.fullmatch(path.stem), load(path)
    # Segmentation names height x width of the crop; detection the largest (long, short) side after resizing.
    size = (int(said['height']), int(said['width'])) if said['height'] else (1333, 800)
    train, test = cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline
    if said['method'] == 'upernet':
        assert [tuple(crop) for crop in find_all(train, 'crop_size')] == [size]
        assert tuple(cfg.model.data_preprocessor.size) == size
    else:
        assert [tuple(scale) for scale in find_all(train, 'scale')] == [size]
        assert [tuple(scale) for scale in find_all(test, 'scale')] == [size]


@leaves
def test_leaf_is_bases_and_wiring(path):
    assert assigned(path) == ['_base_', 'model']
    assert len(statements(path)) == 2
    assert bases_of(path)[1].parent.name == 'backbones'


def test_no_leaf_is_inherited():
    inherited = [base for path in FILES for base in bases_of(path)]
    assert set(inherited) <= set(BASES)
    assert set(inherited) == {path for path in BASES if path in inherited}
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


@pytest.mark.parametrize('arch', sorted(ARCHS.values()))
def test_backbone_base(arch):
    path = CONFIGS / '_base_' / 'backbones' / f'inceptionnext_{arch}.py'
    assert assigned(path) == ['backbone', 'channels']
    assert tuple(load(path).channels) == InceptionNeXt(arch).out_channels
