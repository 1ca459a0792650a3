"""300 epochs of AdamW in mixed precision: 20 epochs of warm-up from 1e-6 to 4e-3, then a cosine to 1e-5.

Mirrors FasterNet's released code and Table 6: the warm-up reaches the full rate in epoch 19, the cosine spans the
other 280. That code hands the optimizer a list of parameters, so timm finds no names to exempt from weight decay: norms
and biases are decayed like everything else. 4096 images per step.
"""

_base_ = './by_epoch.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 4e-3, by_epoch=True, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
optim_wrapper = dict(type='DenseAmpOptimWrapper', optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8))
default_hooks = dict(checkpoint=dict(save_best='top1'))
auto_scale_lr = dict(enable=False, base_batch_size=4096)
