_base_ = ['../_base_/imagenet_convnext_300e.py', '../_base_/backbones/convnext_tiny_k5.py']
model = dict(
    backbone=dict(_base_.backbone, out_indices=[3], out_norm=None, init_cfg=None, drop_path_rate=0.1),
    head=dict(in_channels=_base_.channels[3]),
)
