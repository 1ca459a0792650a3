"""400 iterations of AdamW from scratch: about ten minutes on two CPU cores.

Our own. A higher rate than the published recipes, because nothing is pretrained and little time is left to learn;
gradients are clipped, because small batches of photos with many objects are uneven.
"""

_base_ = ['./by_iteration.py', './adamw.py']

train_cfg = dict(type='IterBasedTrainLoop', max_iters=400, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=40, end=400),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0))
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
log_processor = dict(window_size=10)
