_base_ = ['../_base_/cascade_mask_rcnn_coco_3x.py', '../_base_/backbones/convnext_tiny.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
)
