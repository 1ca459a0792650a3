"""UperNet (UPerHead 512, pooling 1/2/3/6) with an FCN auxiliary head (256) on stage 3, without a backbone.

Mirrors mmseg `configs/_base_/models/upernet_swin.py`. Differs: the leaf brings the backbone and the heads'
`in_channels`; 150 classes. With the output norms of the backbone bases the sizes are those of the papers' tables,
auxiliary head included: InceptionNeXt T 56M, S 78M, B 115M; ConvNeXt T 60M, S 82M, B 122M.
"""

_base_ = './encoder_decoder.py'

model = dict(
    decode_head=dict(
        type='UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)
