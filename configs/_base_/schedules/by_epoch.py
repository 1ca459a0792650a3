"""Hooks and log of a run that is counted in epochs. Mirrors mmdet `configs/_base_/default_runtime.py`."""

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=True, interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
