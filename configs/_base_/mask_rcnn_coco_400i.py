"""Mask R-CNN with slim heads on COCO at 320 pixels, 400 iterations of 8 images: a look at real data on a laptop."""

_base_ = [
    './models/mask_rcnn_fpn_slim.py',
    './datasets/coco_320x320.py',
    './schedules/adamw_400i.py',
    './runtime/det.py',
]
