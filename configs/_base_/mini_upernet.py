"""UperNet with slim heads on the mini data set: some minutes on two CPU cores."""

_base_ = [
    './models/upernet_slim.py',
    './datasets/mini_labels.py',
    './schedules/mini_200i.py',
    './runtime/seg.py',
]
_norm = dict(type='BN')

model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(out_norm=_norm),
    decode_head=dict(num_classes=12, norm_cfg=_norm),
    auxiliary_head=dict(num_classes=12, norm_cfg=_norm),
)
