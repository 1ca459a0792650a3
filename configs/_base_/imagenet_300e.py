"""ImageNet-1K, 300 epochs, 8 GPUs x 128 images x 4 batches per update, without a head.

Table 9 of the InceptionNeXt paper and its released commands, which the ConvNeXt variants share: mixup 0.8, cutmix 1.0,
random erasing 0.25, label smoothing 0.1, RandAugment 9/0.5, layer scale 1e-6. Drop path is set in the leaves.
"""

_base_ = [
    './models/classifier.py',
    './datasets/in1k_224x224.py',
    './schedules/adamw_timm_300e.py',
    './runtime/cls.py',
]
_accumulation = 4
model = dict(train_cfg=dict(mixup=0.8, cutmix=1.0, erase_prob=0.25))
train_dataloader = dict(batch_sampler=dict(accumulative_counts=_accumulation))
optim_wrapper = dict(accumulative_counts=_accumulation)
