_base_ = ['../_base_/mask_rcnn_coco_1x_convnext.py', '../_base_/backbones/convnext_tiny_k3_par1_2.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)
