"""Mask R-CNN with ResNet-50 on COCO, 12 epochs, 8 GPUs x 2 images: the baseline of all tables.

Mirrors mmdet `configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py`; SGD 0.02.

Expected (FasterNet's Table 4): 38.0/34.4 box/mask AP.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance.py',
    './schedules/steps_1x.py',
    './schedules/sgd.py',
    './runtime/det.py',
]
