"""Semantic FPN: FPN of 256 channels, FPNHead of 128, without a backbone.

Mirrors mmseg `configs/_base_/models/fpn_r50.py`. Differs: the leaf brings the backbone and the neck's `in_channels`;
150 classes. The sizes reproduce Table 7 of the InceptionNeXt paper (T 28M, S 50M, B 85M, output norms included).
"""

_base_ = './encoder_decoder.py'

model = dict(
    neck=dict(type='FPN', out_channels=256, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
