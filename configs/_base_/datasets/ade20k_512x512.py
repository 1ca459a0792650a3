"""ADE20K scene parsing (150 classes), crops of 512x512, 4 images per GPU.

Mirrors mmseg `configs/_base_/datasets/ade20k.py`. Differs: nothing repeats that label 0 is "other" and does not count
(the dataset class says so, and the loading step takes it from there), and multi-scale testing resizes relative to
(2048, 512) like Swin's and ConvNeXt's evaluation, not relative to the photo's own size. The metric gives the same
numbers, counted many times faster.
Expects the official archive: `images/{training,validation}` and `annotations/{training,validation}`.
"""

data_root = 'data/ade/ADEChallengeData2016'

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(2048, 512), keep_ratio=True),
            # After the resize: the truth keeps the size of the photo, in which the metric is computed.
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='DenseIoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(1024, 256), keep_ratio=True),  # x 0.5
                dict(type='Resize', scale=(1536, 384), keep_ratio=True),  # x 0.75
                dict(type='Resize', scale=(2048, 512), keep_ratio=True),
                dict(type='Resize', scale=(2560, 640), keep_ratio=True),  # x 1.25
                dict(type='Resize', scale=(3072, 768), keep_ratio=True),  # x 1.5
                dict(type='Resize', scale=(3584, 896), keep_ratio=True),  # x 1.75
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
