"""FasterNet on ImageNet-1K, 300 epochs, 8 GPUs x 512 images, half precision: what its six sizes share.

Table 6 of the paper and the released configs: 192 pixels until epoch 280, then 224; bicubic crops; cutmix 1.0, no
erasing, no colour jitter; tested at 224 pixels with crop 0.9. Mixup, RandAugment, decay and clipping grow with the
model and are set in its recipe, drop path in the leaf.
"""

_base_ = [
    './models/classifier.py',
    './datasets/in1k_224x224.py',
    './schedules/adamw_warm_300e.py',
    './runtime/cls.py',
]
model = dict(head=dict(type='FasterNetHead'), train_cfg=dict(cutmix=1.0))
train_dataloader = dict(
    batch_size=512,
    dataset=dict(transform=dict(size=192, auto_augment=None, interpolation='bicubic')),
)
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.9)))
test_dataloader = val_dataloader
custom_hooks = [dict(type='TrainSizeHook', epoch=280, size=224)]
