_base_ = ['../_base_/mask_rcnn_coco_1x_r50.py', '../_base_/backbones/resnet50.py']
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels),
)
