"""Your own label maps in ADE20K's layout, named by `classes.json`; crops of 256x256, 8 images per step.

Differs from `ade20k_512x512.py` in the settings below. The launcher fills the heads' `num_classes` from the data.
Give the folder with `--data-root`.
"""

_base_ = './ade20k_512x512.py'

data_root = 'data/own'

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        type='SegFolderDataset',
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomResize', scale=(256, 256), ratio_range=(0.75, 1.5), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.9),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type='SegFolderDataset',
        data_root=data_root,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(256, 256), keep_ratio=True),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(192, 192), keep_ratio=True),
                dict(type='Resize', scale=(256, 256), keep_ratio=True),
                dict(type='Resize', scale=(320, 320), keep_ratio=True),
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
