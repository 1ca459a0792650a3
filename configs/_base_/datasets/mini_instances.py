"""Objects of the mini data set (`dense/data/mini/write.py`): longest side 160 pixels, flipped, batches of 8."""

_base_ = './own_coco_320x320.py'

data_root = 'data/mini'

_images = dict(type='LoadImageFromFile')
_resize = dict(type='Resize', scale=(160, 160), keep_ratio=True)
_truth = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)

train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='instances_training.json',
        data_prefix=dict(img='images/training/'),
        pipeline=[
            _images,
            _truth,
            _resize,
            dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackDetInputs'),
        ],
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='instances_validation.json',
        data_prefix=dict(img='images/validation/'),
        pipeline=[
            _images,
            _resize,
            _truth,
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + '/instances_validation.json')
test_evaluator = val_evaluator
