"""450 iterations for the mini data set's label maps.

Differs from `adamw_400i.py`: longer, and with higher rates, highest in the heads, which start from nothing and have to
tell twelve classes apart in so few steps.
"""

_base_ = './adamw_400i.py'

train_cfg = dict(max_iters=450, val_interval=450)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=20, end=450),
]
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=3.0))),
)
default_hooks = dict(checkpoint=dict(interval=450))
