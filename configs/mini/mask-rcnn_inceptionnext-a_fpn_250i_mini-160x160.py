_base_ = ['../_base_/mini_mask_rcnn.py', '../_base_/backbones/inceptionnext_atto.py']
model = dict(
    backbone=dict(_base_.backbone, out_norm=dict(type='BN'), init_cfg=None, layer_scale_init_value=1.0),
    neck=dict(in_channels=_base_.channels),
)
