"""Cascade Mask R-CNN on COCO for backbones of size B: `cascade_mask_rcnn_coco_3x.py` with layer-wise rates of 0.8."""

_base_ = './cascade_mask_rcnn_coco_3x.py'

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
