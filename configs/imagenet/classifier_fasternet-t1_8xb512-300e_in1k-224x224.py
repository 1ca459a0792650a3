_base_ = ['../_base_/imagenet_fasternet_t1.py', '../_base_/backbones/fasternet_t1.py']
model = dict(
    backbone=dict(_base_.backbone, out_indices=[3], out_norm=None, init_cfg=None, drop_path_rate=0.02),
    head=dict(in_channels=_base_.channels[3], act='GELU'),
)
