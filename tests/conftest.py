"""Tiny data sets and runs that several suites use."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from backbones.fast import winograd

PROJECT = Path(__file__).resolve().parent.parent
ARCH = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
CHANNELS = [16, 16, 32, 32]
CONFIGS = {
    'det': 'configs/mask_rcnn/mask-rcnn_inceptionnext-a_fpn_400i_own-320x320.py',
    'seg': 'configs/upernet/upernet_inceptionnext-a_400i_own-256x256.py',
}
NUM_IMAGES = 6


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a data set with 6 training and 6 validation images: COCO's and ADE20K's layout of the same scenes."""
    root = tmp_path_factory.mktemp('tiny')
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        _write_split(root, split, rng)
    (root / 'classes.json').write_text(json.dumps(['ground', 'red', 'blue']))
    return root


def _write_split(root: Path, split: str, rng: np.random.Generator) -> None:
    for kind in ('images', 'annotations'):
        (root / kind / split).mkdir(parents=True)
    images, annotations = [], []
    for i in range(1, NUM_IMAGES + 1):
        height, width = (64, 96) if i % 2 else (96, 64)
        category = 1 + i % 2
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        label = np.ones((height, width), np.uint8)
        image[y : y + 36, x : x + 36] = (30, 30, 255) if category == 1 else (255, 30, 30)
        label[y : y + 36, x : x + 36] = 1 + category
        cv2.imwrite(str(root / 'images' / split / f'{i}.jpg'), image)
        cv2.imwrite(str(root / 'annotations' / split / f'{i}.png'), label)
        images.append(dict(id=i, file_name=f'{i}.jpg', height=height, width=width))
        polygon = [x, y, x + 36, y, x + 36, y + 36, x, y + 36]
        shape = dict(bbox=[x, y, 36, 36], area=1296, segmentation=[polygon])
        annotations.append(dict(id=i, image_id=i, category_id=category, iscrowd=0, **shape))
    categories = [dict(id=1, name='red'), dict(id=2, name='blue')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / f'instances_{split}.json').write_text(json.dumps(content))


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / 'data'))


@pytest.fixture
def tiny_options() -> Callable[..., dict[str, Any]]:
    """Function (task, data root, steps) -> config options that make the project's configs tiny."""
    return _tiny_options


def _tiny_options(task: str, root: Path, *, iters: int = 2, num_workers: int = 0) -> dict[str, Any]:
    options: dict[str, Any] = {
        'model.backbone.arch': ARCH,
        'train_cfg.max_iters': iters,
        'train_cfg.val_interval': max(1, iters // 2),  # before the end, too: training goes on after a validation
        'train_dataloader.batch_size': 2,
        'val_dataloader.batch_size': 1,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.num_workers'] = num_workers
        options[f'{split}_dataloader.persistent_workers'] = num_workers > 0
    return {**options, **(_tiny_detector() if task == 'det' else _tiny_segmentor())}


def _tiny_detector() -> dict[str, Any]:
    options: dict[str, Any] = {
        'model.neck.in_channels': CHANNELS,
        'model.neck.out_channels': 16,
        'model.rpn_head.in_channels': 16,
        'model.rpn_head.feat_channels': 16,
        'model.roi_head.bbox_roi_extractor.out_channels': 16,
        'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        'model.roi_head.mask_roi_extractor.out_channels': 16,
        'model.roi_head.mask_head.in_channels': 16,
        'model.roi_head.mask_head.conv_out_channels': 16,
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        'model.test_cfg.rpn.max_per_img': 50,
        'model.test_cfg.rcnn.max_per_img': 10,
    }
    for split, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        options[f'{split}_dataloader.dataset.ann_file'] = f'instances_{folder}.json'
        options[f'{split}_dataloader.dataset.data_prefix.img'] = f'images/{folder}/'
        scale = 'pipeline.2.scale' if split == 'train' else 'pipeline.1.scale'
        options[f'{split}_dataloader.dataset.{scale}'] = (96, 96)
    for split in ('val', 'test'):
        # Below the root that the config names, so that --data-root moves it along with the images.
        options[f'{split}_evaluator.ann_file'] = 'data/own/instances_validation.json'
    return options


def _tiny_segmentor() -> dict[str, Any]:
    return {
        'model.decode_head.in_channels': CHANNELS,
        'model.decode_head.channels': 16,
        'model.auxiliary_head.in_channels': CHANNELS[2],
        'model.auxiliary_head.channels': 16,
        'model.data_preprocessor.size': (64, 64),
        'train_dataloader.dataset.pipeline.2.scale': (96, 96),
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    }


@pytest.fixture
def tiny_command(tiny_options: Callable[..., dict[str, Any]]) -> Callable[..., list[str]]:
    """Function (task, data root, work dir, *more options) -> arguments of tools/train.py for a tiny run."""

    def arguments(task: str, root: Path, work_dir: Path, *more: str, iters: int = 2, num_workers: int = 0) -> list[str]:
        options = tiny_options(task, root, iters=iters, num_workers=num_workers)
        pairs = [f'{key}={value!r}' for key, value in options.items()]
        return [
            CONFIGS[task], '--data-root', str(root), '--work-dir', str(work_dir), '--cfg-options', *pairs, *more,
        ]  # fmt: skip

    return arguments


@pytest.fixture
def all_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes every 3 x 3 convolution in tiles; the models of tests are too small for the usual limits."""
    monkeypatch.setattr(winograd, '_limits', lambda: winograd._Limits(0, 0, 0, 0))


@pytest.fixture
def tiny_config_files() -> dict[str, str]:
    """Task -> config file that the tiny runs are made from, relative to the project."""
    return CONFIGS
