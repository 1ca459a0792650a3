"""12 epochs of AdamW for COCO detection, 16 images per step.

Mirrors mmdet `configs/_base_/schedules/schedule_1x.py`. Differs in the optimizer: AdamW 1e-4 with weight decay 0.05
instead of SGD, the setting of InternImage's and VAN's Mask R-CNN 1x and of ConvNeXt's 3x.
"""

_base_ = ['./steps_1x.py', './adamw.py']

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
