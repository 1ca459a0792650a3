_base_ = ['../_base_/semantic_fpn_ade20k_40k.py', '../_base_/backbones/resnet50_v1c.py']
model = dict(
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.channels),
)
