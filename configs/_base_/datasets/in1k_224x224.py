"""ImageNet-1K at 224x224 pixels, 128 images per GPU, RandAugment: what timm's training script does by default.

Tested on the central 224 pixels of a shortest side of 256 (crop 0.875), bicubic, as InceptionNeXt's released code says
for all of its models and for the ConvNeXt variants.
Expects `train/<class>/` and `val/<class>/` below `data_root`, the classes as folders.
"""

data_root = 'data/imagenet'

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='WholeUpdates'),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train'),
        transform=dict(type='TimmTrainTransform', size=224, auto_augment='rand-m9-mstd0.5-inc1'),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ImageFolderDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val'),
        transform=dict(type='TimmTestTransform', size=224, crop_pct=0.875, interpolation='bicubic'),
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='TopAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
