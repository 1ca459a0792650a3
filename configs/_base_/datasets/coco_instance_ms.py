"""COCO 2017 instances, shortest side anywhere from 640 to 800 pixels in training.

Mirrors mmdet `configs/common/ms_3x_coco-instance.py`; differs from `coco_instance.py` in the settings below.
"""

_base_ = './coco_instance.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    ),
)
