"""12 epochs of COCO, 16 images per step: a tenth of the rate after epochs 8 and 11.

Mirrors mmdet `configs/_base_/schedules/schedule_1x.py`, with its linear warm-up over 500 iterations from 0.001.
Differs: the optimizer has a file of its own.
"""

_base_ = './by_epoch.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
