_base_ = ['../_base_/upernet_ade20k_amp_160k.py', '../_base_/backbones/convnext_tiny.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.4, layer_scale_init_value=1.0),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
