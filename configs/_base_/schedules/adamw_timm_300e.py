"""300 epochs of AdamW, 4096 images per update: 20 epochs of warm-up from 1e-6 to 4e-3, then a cosine to 1e-5.

Mirrors the released commands of InceptionNeXt-T/S/B and the ConvNeXt variants on timm's training script: the rate is
constant within an epoch and follows timm's formula. Left out: ten more epochs at the least rate, which that script
appends by default and the paper (300 epochs) does not mention.
"""

_base_ = './adamw_timm.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
param_scheduler = [dict(type='TimmCosineLR', end=300, warmup=20, warmup_lr=1e-6, min_lr=1e-5)]
optim_wrapper = dict(optimizer=dict(lr=4e-3))
auto_scale_lr = dict(enable=False, base_batch_size=4096)
