"""30 epochs of AdamW for a few thousand small images, 64 per step. Our own."""

_base_ = './adamw_timm.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=1)
param_scheduler = [dict(type='TimmCosineLR', end=30, warmup=3, warmup_lr=1e-5, min_lr=1e-5)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
auto_scale_lr = dict(enable=False, base_batch_size=64)
