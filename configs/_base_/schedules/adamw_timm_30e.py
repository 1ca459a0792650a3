"""30 epochs of AdamW at a constant 5e-5, 1024 images per update: the fine-tuning of InceptionNeXt-B (Table 9)."""

_base_ = './adamw_timm.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=30, val_interval=1)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True, begin=0, end=30)]
optim_wrapper = dict(optimizer=dict(lr=5e-5))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
