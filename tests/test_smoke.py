"""Do both tasks run from end to end: train, validate, save, resume, load, test? On any supported set of packages."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import dense  # noqa: F401  before anything of mmdet and mmseg
from dense.compat import install

install()

pytestmark = pytest.mark.smoke

HEIGHT, WIDTH, NUM_IMAGES = 96, 128, 4
ARCH = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
BACKBONE = dict(type='InceptionNeXt', arch=ARCH)
CHANNELS = [16, 16, 32, 32]
NORMALISE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
TASKS = ('detection', 'segmentation')


def write_images(root: Path) -> list[list[tuple[int, int, int, int]]]:
    """Noise with two bright boxes in each image; returns the boxes as (x, y, w, h)."""
    (root / 'img').mkdir(parents=True)
    rng = np.random.default_rng(0)
    places = []
    for index in range(NUM_IMAGES):
        image = rng.integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        boxes = [(8 + 4 * index, 10, 40, 30), (70, 40 + 3 * index, 36, 44)]
        for color, (x, y, w, h) in zip(((255, 40, 40), (40, 255, 40)), boxes, strict=True):
            image[y : y + h, x : x + w] = color
        assert cv2.imwrite(str(root / 'img' / f'{index}.png'), image)
        places.append(boxes)
    return places


def write_coco(root: Path) -> None:
    annotations = []
    for image, boxes in enumerate(write_images(root)):
        for category, (x, y, w, h) in enumerate(boxes, 1):
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[polygon],
                )
            )
    images = [dict(id=i, file_name=f'{i}.png', height=HEIGHT, width=WIDTH) for i in range(NUM_IMAGES)]
    categories = [dict(id=1, name='red'), dict(id=2, name='green')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / 'coco.json').write_text(json.dumps(content))


def write_labels(root: Path) -> None:
    (root / 'label').mkdir(parents=True)
    for index, boxes in enumerate(write_images(root)):
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        for value, (x, y, w, h) in enumerate(boxes, 1):
            label[y : y + h, x : x + w] = value
        label[:2] = 255
        assert cv2.imwrite(str(root / 'label' / f'{index}.png'), label)


def mask_rcnn() -> dict:
    def anchors_to_boxes(stds: list[float]) -> dict:
        return dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=stds)

    def roi_features(size: int) -> dict:
        return dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=0),
            out_channels=16,
            featmap_strides=[4, 8, 16, 32],
        )

    def assigner(positive: float, negative: float) -> dict:
        return dict(
            type='MaxIoUAssigner', pos_iou_thr=positive, neg_iou_thr=negative, min_pos_iou=0.3, ignore_iof_thr=-1
        )

    def sampler(num: int, add_gt: bool) -> dict:
        return dict(type='RandomSampler', num=num, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=add_gt)

    proposals = dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)
    return dict(
        type='MaskRCNN',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_mask=True, pad_size_divisor=32, **NORMALISE),
        backbone=BACKBONE,
        neck=dict(type='FPN', in_channels=CHANNELS, out_channels=16, num_outs=5),
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
            ),
            bbox_coder=anchors_to_boxes([1.0] * 4),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=roi_features(7),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=32,
                roi_feat_size=7,
                num_classes=2,
                bbox_coder=anchors_to_boxes([0.1, 0.1, 0.2, 0.2]),
                reg_class_agnostic=False,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            ),
            mask_roi_extractor=roi_features(14),
            mask_head=dict(
                type='FCNMaskHead',
                num_convs=1,
                in_channels=16,
                conv_out_channels=16,
                num_classes=2,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner(0.7, 0.3), sampler=sampler(64, False), allowed_border=-1, pos_weight=-1, debug=False
            ),
            rpn_proposal=proposals,
            rcnn=dict(assigner=assigner(0.5, 0.5), sampler=sampler(32, True), mask_size=28, pos_weight=-1, debug=False),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20, mask_thr_binary=0.5),
        ),
    )


def upernet() -> dict:
    norm, loss = dict(type='SyncBN', requires_grad=True), dict(type='CrossEntropyLoss', use_sigmoid=False)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', size=(HEIGHT, WIDTH), pad_val=0, seg_pad_val=255, **NORMALISE
        ),
        backbone=BACKBONE,
        decode_head=dict(
            type='UPerHead',
            in_channels=CHANNELS,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            channels=16,
            dropout_ratio=0.1,
            num_classes=3,
            norm_cfg=norm,
            align_corners=False,
            loss_decode=loss,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def detection_data(root: Path) -> tuple[dict, dict, dict]:
    load = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
    ]
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='coco.json',
        data_prefix=dict(img='img/'),
        metainfo=dict(classes=('red', 'green')),
        pipeline=[*load, dict(type='PackDetInputs', meta_keys=keys)],
    )
    metric = dict(type='CocoMetric', ann_file=str(root / 'coco.json'), metric=['bbox', 'segm'])
    return dataset, {**dataset, 'test_mode': True}, metric


def segmentation_data(root: Path) -> tuple[dict, dict, dict]:
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='img', seg_map_path='label'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=('ground', 'red', 'green'), palette=[[0, 0, 0], [255, 0, 0], [0, 255, 0]]),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    )
    return dataset, {**dataset, 'test_mode': True}, dict(type='IoUMetric', iou_metrics=['mIoU'])


def loader(dataset: dict, infinite: bool) -> dict:
    sampler = dict(type='InfiniteSampler' if infinite else 'DefaultSampler', shuffle=infinite)
    return dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset)


def config(task: str, root: Path, work_dir: Path) -> Config:
    data = detection_data(root) if task == 'detection' else segmentation_data(root)
    train_set, val_set, metric = data
    val_loader = loader(val_set, infinite=False)
    return Config(
        dict(
            default_scope='mmdet' if task == 'detection' else 'mmseg',
            custom_imports=dict(imports=['backbones'], allow_failed_imports=False),
            model=mask_rcnn() if task == 'detection' else upernet(),
            train_dataloader=loader(train_set, infinite=True),
            val_dataloader=val_loader,
            test_dataloader=val_loader,
            val_evaluator=metric,
            test_evaluator=metric,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
            param_scheduler=[dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=4, by_epoch=False)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            ),
            log_processor=dict(by_epoch=False),
            work_dir=str(work_dir),
            randomness=dict(seed=0),
            log_level='WARNING',
            experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
        )
    )


def logged(work_dir: Path, key: str) -> list[float]:
    rows = [
        json.loads(line) for file in work_dir.glob('*/vis_data/scalars.json') for line in file.read_text().splitlines()
    ]
    return [row[key] for row in rows if key in row]


@pytest.mark.parametrize('task', TASKS)
def test_trains_validates_saves_resumes_loads_and_tests(task: str, tmp_path: Path) -> None:
    (write_coco if task == 'detection' else write_labels)(tmp_path)
    first = tmp_path / 'first'
    Runner.from_cfg(config(task, tmp_path, first)).train()
    losses = logged(first, 'loss')
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert sorted(path.name for path in first.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']

    resumed = config(task, tmp_path, tmp_path / 'second')
    resumed.resume, resumed.load_from = True, str(first / 'iter_2.pth')
    runner = Runner.from_cfg(resumed)
    runner.train()
    assert runner.iter == 4
    assert len(logged(tmp_path / 'second', 'loss')) == 2
    assert (tmp_path / 'second' / 'iter_4.pth').is_file()

    tested = config(task, tmp_path, tmp_path / 'third')
    tested.load_from = str(first / 'iter_4.pth')
    runner = Runner.from_cfg(tested)
    metrics = runner.test()
    key = 'coco/segm_mAP' if task == 'detection' else 'mIoU'
    assert key in metrics
    saved = torch.load(first / 'iter_4.pth', weights_only=False)['state_dict']  # our own file, a moment ago
    assert all(torch.equal(saved[name], value) for name, value in runner.model.state_dict().items())


@pytest.mark.parametrize('task', TASKS)
def test_trains_and_tests_in_mixed_precision(task: str, tmp_path: Path) -> None:
    (write_coco if task == 'detection' else write_labels)(tmp_path)
    changed = config(task, tmp_path, tmp_path / 'run')
    changed.optim_wrapper.update(type='DenseAmpOptimWrapper', clip_grad=dict(max_norm=35.0))
    changed.train_cfg.update(max_iters=2, val_interval=1)
    Runner.from_cfg(changed).train()
    losses = logged(tmp_path / 'run', 'loss')
    assert len(losses) == 2
    assert np.isfinite(losses).all()
