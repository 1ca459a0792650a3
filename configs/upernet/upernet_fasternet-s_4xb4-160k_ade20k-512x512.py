_base_ = ['../_base_/upernet_ade20k_160k.py', '../_base_/backbones/fasternet_s.py']
model = dict(
    backbone=dict(_base_.backbone, drop_path_rate=0.15),
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
