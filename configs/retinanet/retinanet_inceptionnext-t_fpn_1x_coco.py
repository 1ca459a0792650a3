_base_ = ['../_base_/retinanet_coco_1x.py', '../_base_/backbones/inceptionnext_tiny.py']
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels[1:]),
)
