"""250 iterations for the mini data set's objects. Differs from `adamw_400i.py` in length only."""

_base_ = './adamw_400i.py'

train_cfg = dict(max_iters=250, val_interval=250)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=30, end=250),
]
default_hooks = dict(checkpoint=dict(interval=250))
