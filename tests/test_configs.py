"""Does every config build, train a step and predict, and are its numbers those of the published recipe?"""

import json
import re
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from backbones import InceptionNeXt
from dense.data.mini import write_mini
from dense.launch import load_config, train
from dense.launch import test as evaluate

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
BY_NAME = {path.stem: path for path in LEAVES}
MASK_RCNN = [f'mask-rcnn_inceptionnext-{arch}_fpn_1x_coco' for arch in 'atsb']
UPERNET = [f'upernet_inceptionnext-{arch}_4xb4-160k_ade20k-512x512' for arch in 'atsb']
HEIGHT, WIDTH = 64, 96


@cache
def load(name):
    return Config.fromfile(BY_NAME[name])


@cache
def build_on_meta(name):
    """The model at its true size, without memory for its parameters. Not to be changed: tests share it."""
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def write_images(folder, names):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(folder / f'{name}.jpg'), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def write_coco(root, classes):
    """Two photos per split in COCO's layout, one square object each."""
    for split in ('train2017', 'val2017'):
        write_images(root / split, ['1', '2'])
        square = dict(bbox=[20, 10, 40, 40], segmentation=[[20, 10, 60, 10, 60, 50, 20, 50]], area=1600, iscrowd=0)
        content = dict(
            images=[dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in (1, 2)],
            annotations=[dict(square, id=i, image_id=i, category_id=i) for i in (1, 2)],
            categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)],
        )
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def write_labels(root, num_classes):
    """Two photos per split in ADE20K's layout, every label value from 0 (unlabelled) on."""
    for split in ('training', 'validation'):
        write_images(root / 'images' / split, ['1', '2'])
        folder = root / 'annotations' / split
        folder.mkdir(parents=True)
        values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 40 % (num_classes + 1)
        for name in ('1', '2'):
            cv2.imwrite(str(folder / f'{name}.png'), values.astype(np.uint8))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Root of a tiny data set for each that the configs name."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('data')
    write_coco(root / 'coco', CocoDataset.METAINFO['classes'])
    write_labels(root / 'ade20k', 150)
    write_coco(root / 'own', ('bolt', 'nut', 'gear'))
    write_labels(root / 'own', 3)
    (root / 'own' / 'classes.json').write_text(json.dumps([dict(index=i, name=f'part {i}') for i in (1, 2, 3)]))
    write_mini(root / 'mini', num_train=2, num_val=1)
    return root


def shrink_pipeline(node):
    """Replace the sizes in a pipeline by small ones, wherever they stand."""
    if isinstance(node, list):
        for item in node:
            shrink_pipeline(item)
    elif isinstance(node, dict):
        for key in {'scale', 'crop_size'} & set(node):
            node[key] = (WIDTH, HEIGHT) if key == 'scale' else (HEIGHT, HEIGHT)
        for value in list(node.values()):
            shrink_pipeline(value)


def reduce(cfg):
    """Cut a config down to one small step: sizes and counts change, parts and wiring stay."""
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=min(loader.batch_size, 2), num_workers=0, persistent_workers=False)
        shrink_pipeline(loader.dataset.pipeline)
    cfg.model.backbone.init_cfg = None
    if 'decode_head' in cfg.model:
        cfg.model.data_preprocessor.size = (HEIGHT, HEIGHT)
        cfg.model.decode_head.channels = cfg.model.auxiliary_head.channels = 16
        shrink_pipeline(cfg.tta_pipeline)
        cfg.tta_pipeline[1].transforms[0] = cfg.tta_pipeline[1].transforms[0][:2]
    else:
        cfg.model.roi_head.bbox_head.fc_out_channels = 64
        cfg.model.train_cfg.rcnn.sampler.num = 32
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.test_cfg.rpn.max_per_img = 20
        cfg.model.test_cfg.rcnn.max_per_img = 5
        cfg.model.test_cfg.rcnn.score_thr = 0  # an untrained classifier is sure of nothing
    if 'max_epochs' in cfg.train_cfg:
        cfg.train_cfg.max_epochs = 1
    else:
        cfg.train_cfg.update(max_iters=1, val_interval=1)


@pytest.mark.parametrize('name', sorted(BY_NAME))
def test_one_step_and_one_prediction(name, data, tmp_path):
    dataset = re.search(r'_(coco|ade20k|own|mini)(-|$)', name)[1]
    cfg = load_config(BY_NAME[name], data_root=data / dataset, work_dir=tmp_path)
    reduce(cfg)
    before = {key: value.clone() for key, value in InceptionNeXt(cfg.model.backbone.arch).state_dict().items()}
    runner = train(cfg)
    assert runner.iter == 1
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].current())
    backbone = runner.model.backbone.state_dict()
    assert set(before) < set(backbone)  # and the output norms
    assert int(backbone['out_norm3.num_batches_tracked']) == 1
    metric = 'val/mIoU' if 'decode_head' in cfg.model else 'val/coco/segm_mAP'
    assert metric in scalars


def test_test_time_augmentation(data, tmp_path):
    cfg = load_config(BY_NAME[UPERNET[0]], data_root=data / 'ade20k', work_dir=tmp_path)
    reduce(cfg)
    train(cfg)
    metrics = evaluate(cfg, tmp_path / 'iter_1.pth', tta=True)
    assert 0 <= metrics['mIoU'] <= 100


def lr_curve(cfg, iters_per_epoch, wanted):
    """Learning rate at the wanted iterations, by MMEngine's own schedulers stepped as its hook steps them."""
    from mmengine.registry import PARAM_SCHEDULERS

    parameter = nn.Parameter(torch.zeros(()))
    base = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([parameter], lr=base)
    schedulers = [PARAM_SCHEDULERS.build(item, default_args=dict(optimizer=optimizer)) for item in cfg.param_scheduler]
    optimizer.step()
    rates = {}
    for iteration in range(max(wanted) + 1):
        if iteration in wanted:
            rates[iteration] = optimizer.param_groups[0]['lr']
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % iters_per_epoch == 0:
                scheduler.step()
    return rates


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


@pytest.mark.parametrize('name', MASK_RCNN + UPERNET)
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


# UperNet: Table 10 of the InceptionNeXt paper, and its ImageNet rate for atto. Mask R-CNN: see the recipe's docstring.
DROP_PATH = dict(zip(MASK_RCNN + UPERNET, (0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4), strict=True))


@pytest.mark.parametrize('name', MASK_RCNN + UPERNET)
def test_drop_path_grows_linearly(name):
    backbone = build_on_meta(name).backbone
    rates = [getattr(block.drop_path, 'drop_prob', 0) for stage in backbone.stages for block in stage.blocks]
    assert len(rates) == sum(InceptionNeXt.ARCHS[load(name).model.backbone.arch].depths)
    np.testing.assert_allclose(rates, np.linspace(0, DROP_PATH[name], len(rates)), atol=1e-6)


@pytest.mark.parametrize('name', MASK_RCNN + UPERNET)
def test_outputs_have_a_synchronised_norm(name):
    backbone = build_on_meta(name).backbone
    norms = [getattr(backbone, f'out_norm{i}') for i in range(4)]
    assert [type(norm) for norm in norms] == [nn.SyncBatchNorm] * 4
    assert tuple(norm.num_features for norm in norms) == backbone.out_channels


# Millions of parameters. UperNet: Table 6 to two more digits, auxiliary head and output norms included.
# Mask R-CNN: counted from the architecture without output norms, which add 2 x sum(channels).
PARAMETERS = dict(zip(MASK_RCNN + UPERNET, (22.94, 44.25, 65.57, 100.84, None, 56.40, 77.72, 114.98), strict=True))


@pytest.mark.parametrize('name', [name for name in PARAMETERS if PARAMETERS[name]])
def test_number_of_parameters(name):
    model = build_on_meta(name)
    number = sum(parameter.numel() for parameter in model.parameters())
    if name in MASK_RCNN:
        number -= 2 * sum(model.backbone.out_channels)
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


def test_label_zero_does_not_count(data):
    """Value v of an ADE20K label map is class v - 1, and 0 is ignored, in both data sets that read such maps."""
    from mmengine.registry import DATASETS

    for name, root in ((UPERNET[0], 'ade20k'), ('upernet_inceptionnext-a_400i_own-256x256', 'own')):
        cfg = load_config(BY_NAME[name], data_root=data / root)
        init_default_scope(cfg.default_scope)
        sample = DATASETS.build(cfg.val_dataloader.dataset)[0]
        path = sample['data_samples'].seg_map_path
        raw = cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(int)
        expected = np.where(raw == 0, 255, raw - 1)
        np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), expected)


def test_number_of_cases():
    assert len(LEAVES) == 13
    assert len(DROP_PATH) == 8
    assert len([name for name in PARAMETERS if PARAMETERS[name]]) == 7
