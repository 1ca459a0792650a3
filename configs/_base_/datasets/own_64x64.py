"""Your own images in one folder per class, at 64x64 pixels, 64 images per step.

Differs from `in1k_224x224.py`: crops of at least a third of the image instead of 8 %, colour jitter instead of
RandAugment, and testing on the whole shortest side, because small images have little to lose. The launcher fills the
head's `num_classes` from the folders. Give the data with `--data-root`.
"""

_base_ = './in1k_224x224.py'

data_root = 'data/own'

train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        transform=dict(size=64, auto_augment=None, color_jitter=0.3, scale=(0.35, 1.0)),
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, transform=dict(size=64, crop_pct=1.0)),
)
test_dataloader = val_dataloader
