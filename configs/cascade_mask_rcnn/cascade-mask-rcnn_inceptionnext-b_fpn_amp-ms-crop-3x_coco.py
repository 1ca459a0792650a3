_base_ = ['../_base_/cascade_mask_rcnn_coco_3x_base.py', '../_base_/backbones/inceptionnext_base.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.7),
    neck=dict(in_channels=_base_.channels),
)
