_base_ = ['../_base_/upernet_ade20k_sgd_160k.py', '../_base_/backbones/resnet50_v1c.py']
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
