"""AdamW as timm's training script uses it: biases and all other one-dimensional parameters are not decayed.

Betas 0.9 and 0.999, weight decay 0.05, no gradient clipping, full precision. Rate and length are set in the schedules.
"""

_base_ = './by_epoch.py'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
default_hooks = dict(checkpoint=dict(save_best='top1'))
