_base_ = ['../_base_/imagenet_own_30e.py', '../_base_/backbones/inceptionnext_atto.py']
model = dict(
    backbone=dict(
        _base_.backbone, out_indices=[3], out_norm=None, init_cfg=None, drop_path_rate=0.0, layer_scale_init_value=1.0
    ),
    head=dict(in_channels=_base_.channels[3]),
)
