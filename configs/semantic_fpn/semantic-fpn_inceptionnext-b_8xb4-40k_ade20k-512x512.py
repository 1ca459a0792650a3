_base_ = ['../_base_/semantic_fpn_ade20k_40k.py', '../_base_/backbones/inceptionnext_base.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)
