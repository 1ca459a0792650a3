"""Mask R-CNN with slim heads on your own data in COCO's layout at 320 pixels, 400 iterations of 8 images."""

_base_ = [
    './models/mask_rcnn_fpn_slim.py',
    './datasets/own_coco_320x320.py',
    './schedules/adamw_400i.py',
    './runtime/det.py',
]
