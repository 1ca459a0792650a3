"""Tiny data sets in the layouts that the configs name, and configs cut down to one small step."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

HEIGHT, WIDTH = 64, 96


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Random pictures ``<folder>/<name>.jpg`` of HEIGHT x WIDTH pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(folder / f'{name}.jpg'), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def write_coco(root: Path, classes: Sequence[str]) -> None:
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


def write_labels(root: Path, num_classes: int) -> None:
    """Two photos per split in ADE20K's layout, every label value from 0 (unlabelled) on."""
    for split in ('training', 'validation'):
        write_images(root / 'images' / split, ['1', '2'])
        folder = root / 'annotations' / split
        folder.mkdir(parents=True)
        values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 40 % (num_classes + 1)
        for name in ('1', '2'):
            cv2.imwrite(str(folder / f'{name}.png'), values.astype(np.uint8))


def write_classes_of_own_data(root: Path) -> None:
    """``classes.json`` for label maps of three classes."""
    (root / 'classes.json').write_text(json.dumps([dict(index=i, name=f'part {i}') for i in (1, 2, 3)]))


def reduce(cfg: Config) -> None:
    """Cut a config of a detector or a segmentor down to one small step: sizes and counts change, wiring stays."""
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=min(loader.batch_size, 2), num_workers=0, persistent_workers=False)
        _shrink_pipeline(loader.dataset)
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg = None
    if 'decode_head' in cfg.model:
        _reduce_segmentor(cfg)
    else:
        _reduce_detector(cfg.model)
    if 'max_epochs' in cfg.train_cfg:
        cfg.train_cfg.max_epochs = 1
    else:
        cfg.train_cfg.update(max_iters=1, val_interval=1)


def _shrink_pipeline(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _shrink_pipeline(item)
    elif isinstance(node, dict):
        for key in {'scale', 'scales', 'crop_size'} & set(node):
            small = (HEIGHT, HEIGHT) if key == 'crop_size' else (WIDTH, HEIGHT)
            node[key] = (
                [small] * len(node[key]) if isinstance(node[key], list) else small
            )  # one, or several to choose from
        for value in list(node.values()):
            _shrink_pipeline(value)


def _reduce_segmentor(cfg: Config) -> None:
    if cfg.model.data_preprocessor.get('size'):
        cfg.model.data_preprocessor.size = (HEIGHT, HEIGHT)
    if cfg.model.test_cfg.mode == 'slide':
        cfg.model.test_cfg.update(crop_size=(HEIGHT, HEIGHT), stride=(HEIGHT * 2 // 3, HEIGHT * 2 // 3))
    for head in ('decode_head', 'auxiliary_head'):
        if cfg.model.get(head):
            cfg.model[head].channels = 16
    _shrink_pipeline(cfg.tta_pipeline)
    cfg.tta_pipeline[1].transforms[0] = cfg.tta_pipeline[1].transforms[0][:2]


def _reduce_detector(model: Any) -> None:
    if 'roi_head' not in model:
        model.bbox_head.feat_channels = 32
        model.test_cfg.update(nms_pre=50, max_per_img=5, score_thr=0)
        return
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 64
        if 'conv_out_channels' in head:
            head.conv_out_channels = 32
    model.roi_head.mask_head.conv_out_channels = 32
    stages = model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    model.train_cfg.rpn_proposal.max_per_img = 50
    model.test_cfg.rpn.max_per_img = 20
    # An untrained classifier is sure of nothing.
    model.test_cfg.rcnn.update(max_per_img=5, score_thr=0)
