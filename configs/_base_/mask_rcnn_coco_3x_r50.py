"""Mask R-CNN with ResNet-50 on COCO, 36 epochs at many scales, 8 GPUs x 2 images: the baseline of the 3x tables.

Mirrors mmdet `configs/mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py`. Differs: masks are bitmaps instead of polygons,
as in all other recipes here.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance_ms.py',
    './schedules/steps_3x.py',
    './schedules/sgd.py',
    './runtime/det.py',
]
