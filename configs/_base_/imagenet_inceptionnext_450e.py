"""InceptionNeXt-A on ImageNet-1K, 450 epochs, 8 GPUs x 160 images. Expected (Table 4): 75.3 % top-1.

Table 9 of the paper: mixup 0.2, cutmix 1.0, random erasing 0.1, RandAugment 5 with a uniform strength, drop path 0.1
(in the leaf). The released command uses 4 GPUs x 320 images.
"""

_base_ = [
    './models/classifier.py',
    './datasets/in1k_224x224.py',
    './schedules/adamw_timm_450e.py',
    './runtime/cls.py',
]
model = dict(head=dict(type='InceptionNeXtHead'), train_cfg=dict(mixup=0.2, cutmix=1.0, erase_prob=0.1))
train_dataloader = dict(
    batch_size=160,
    dataset=dict(transform=dict(auto_augment='rand-m5-inc1-mstd101')),  # above 100: uniform
)
custom_hooks = [dict(type='SyncBuffersHook')]
