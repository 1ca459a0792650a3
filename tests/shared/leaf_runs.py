"""Runs of leaf configs at reduced size on generated scenes, in a given number of processes."""

from pathlib import Path
from typing import Any

import torch
from leaves import BY_NAME
from mmengine.config import Config
from toy_scenes import outcome

from dense.engine.launch import load_config, test, train

ARCH = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
CHANNELS = [16, 16, 32, 32]
SYNC = dict(type='SyncBN')
# Statistics of the backbone's own norms are frozen; what its heads normalise is synchronised, if anything.
BACKBONE: dict[str, Any] = {
    'model.backbone.arch': ARCH,
    'model.backbone.norm_eval': True,
    'model.backbone.drop_path_rate': 0.3,
    'model.backbone.init_cfg': None,
    'model.backbone.layer_scale_init_value': 1.0,
}
NECK = {'model.neck.in_channels': CHANNELS, 'model.neck.out_channels': 16}
COCO = {
    f'{split}_dataloader.dataset.{key}': value
    for split, folder in (('train', 'training'), ('val', 'validation'), ('test', 'validation'))
    for key, value in (('ann_file', f'instances_{folder}.json'), ('data_prefix.img', f'images/{folder}/'))
} | {f'{split}_evaluator.ann_file': 'data/own/instances_validation.json' for split in ('val', 'test')}

LEAVES: dict[str, tuple[str, dict[str, Any]]] = {
    'Mask R-CNN': (
        'mask-rcnn_inceptionnext-a_fpn_400i_own-320x320',
        {
            **BACKBONE,
            **NECK,
            **COCO,
            'train_dataloader.dataset.pipeline.2.scale': (128, 128),
            'model.rpn_head.in_channels': 16,
            'model.rpn_head.feat_channels': 16,
            'model.roi_head.bbox_roi_extractor.out_channels': 16,
            'model.roi_head.bbox_head.in_channels': 16,
            'model.roi_head.bbox_head.fc_out_channels': 32,
            'model.roi_head.mask_roi_extractor.out_channels': 16,
            'model.roi_head.mask_head.in_channels': 16,
            'model.roi_head.mask_head.conv_out_channels': 16,
            'model.train_cfg.rpn_proposal.max_per_img': 100,
            'model.train_cfg.rcnn.sampler.num': 64,
        },
    ),
    'UperNet': (
        'upernet_inceptionnext-a_400i_own-256x256',
        {
            **BACKBONE,
            'model.backbone.out_norm': SYNC,
            'model.decode_head.in_channels': CHANNELS,
            'model.decode_head.channels': 16,
            'model.decode_head.norm_cfg': SYNC,
            'model.auxiliary_head.in_channels': CHANNELS[2],
            'model.auxiliary_head.channels': 16,
            'model.auxiliary_head.norm_cfg': SYNC,
            'model.data_preprocessor.size': (64, 64),
            'train_dataloader.dataset.pipeline.2.scale': (96, 96),
            'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        },
    ),
    'RetinaNet': (
        'retinanet_inceptionnext-a_fpn_1x_coco',
        {
            **BACKBONE,
            **NECK,
            'model.neck.in_channels': CHANNELS[1:],
            **COCO,
            'train_dataloader.dataset.type': 'CocoFolderDataset',
            'val_dataloader.dataset.type': 'CocoFolderDataset',
            'train_dataloader.dataset.pipeline.2.scale': (128, 128),
            'model.bbox_head.in_channels': 16,
            'model.bbox_head.feat_channels': 16,
            'log_processor.by_epoch': False,
            'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True),
        },
    ),
    'classifier': (
        'classifier_inceptionnext-a_30e_own-64x64',
        {
            **BACKBONE,
            'model.head.in_channels': CHANNELS[-1],
            'model.head.dropout': 0.5,
            'model.train_cfg': dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erase_prob=0.5, group=2),
            'log_processor.by_epoch': False,
            'custom_hooks': [],
        },
    ),
}


def leaf_config(leaf: str, root: Path, work_dir: Path, images: int, processes: int, changes: dict[str, Any]) -> Config:
    """Config of a run, without a schedule.

    Args:
        leaf: Key in :data:`LEAVES`.
        root: Of the data.
        work_dir: Folder of the run.
        images: Of a step, in all processes together.
        processes: Number of them.
        changes: More options.
    """
    name, options = LEAVES[leaf]
    loader = {'train_dataloader.batch_size': images // processes, 'test_dataloader.batch_size': 1}
    for split in ('train', 'val', 'test'):
        loader |= {f'{split}_dataloader.num_workers': 0, f'{split}_dataloader.persistent_workers': False}
    cfg = load_config(
        BY_NAME[name],
        data_root=root,
        work_dir=work_dir,
        options={**options, **loader, **changes},
        seed=3,
        launcher='pytorch' if processes > 1 else 'none',
    )
    counts = changes.get('optim_wrapper.accumulative_counts', 1)
    optimizer = dict(type='SGD', lr=0.005, momentum=0.9)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, accumulative_counts=counts)
    cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=10, by_epoch=False)
    return cfg


def train_leaf(
    leaf: str, root: Path, work_dir: Path, images: int, processes: int, changes: dict[str, Any], steps: int = 20
) -> dict[str, Any]:
    """Train without validation, in double precision, and return what was logged and the weights.

    In single precision, a rounding error of the last digit soon decides between two regions of nearly equal score.
    """
    torch.set_default_dtype(torch.float64)
    cfg = leaf_config(leaf, root, work_dir, images, processes, changes)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    return outcome(train(cfg))


def evaluate_leaf(leaf: str, root: Path, work_dir: Path, processes: int, changes: dict[str, Any]) -> dict[str, float]:
    """Test the checkpoint that :func:`train_leaf` left in a folder, and return the metrics."""
    cfg = leaf_config(leaf, root, work_dir / f'test-{processes}', 8, processes, changes)
    return test(cfg, work_dir / 'iter_20.pth')
