"""36 epochs of COCO, 16 images per step: a tenth of the rate after epochs 27 and 33.

Mirrors mmdet `configs/common/ms_3x_coco-instance.py`. Differs: 36 epochs of the data instead of 12 of its threefold
repetition, so the same steps are validated three times as often; the optimizer has a file of its own.
"""

_base_ = './steps_1x.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
