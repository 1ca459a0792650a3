_base_ = ['../_base_/retinanet_coco_1x.py', '../_base_/backbones/fasternet_s.py']
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels[1:]),
)
