"""12 epochs of AdamW for COCO detection, 16 images per step.

Mirrors mmdet `configs/_base_/schedules/schedule_1x.py`: 12 epochs, a tenth of the rate after epochs 8 and 11, linear
warm-up over 500 iterations from 0.001. Differs in the optimizer: AdamW 1e-4 with weight decay 0.05 instead of SGD,
the setting of InternImage's and VAN's Mask R-CNN 1x and of ConvNeXt's 3x.
"""

_base_ = ['./by_epoch.py', './adamw.py']

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
