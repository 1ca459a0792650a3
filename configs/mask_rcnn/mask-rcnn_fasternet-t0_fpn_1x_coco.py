_base_ = ['../_base_/mask_rcnn_coco_1x_fasternet_small.py', '../_base_/backbones/fasternet_t0.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.0),
    neck=dict(in_channels=_base_.channels),
)
