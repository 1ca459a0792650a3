"""450 epochs of AdamW, 1280 images per update: 5 epochs of warm-up from 5e-7 to 1e-3, then a cosine to 5e-7.

InceptionNeXt-A: length, rate and warm-up of Table 9; both ends of the rate from the released command (which runs for
600 epochs; the published weights are the paper's).
"""

_base_ = './adamw_timm.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=450, val_interval=1)
param_scheduler = [dict(type='TimmCosineLR', end=450, warmup=5, warmup_lr=5e-7, min_lr=5e-7)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(enable=False, base_batch_size=1280)
