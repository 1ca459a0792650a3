"""200 iterations of the mini data set; differs from `adamw_400i.py` in length only."""

_base_ = './adamw_400i.py'

train_cfg = dict(max_iters=200, val_interval=200)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=20, end=200),
]
default_hooks = dict(checkpoint=dict(interval=200))
