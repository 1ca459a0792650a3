"""What every segmentor shares: ImageNet's mean and deviation, padding that does not count, whole-image testing.

Mirrors what mmseg `configs/_base_/models/upernet_r50.py` and `configs/_base_/models/fpn_r50.py` have in common, without
backbone, neck and heads.
"""

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
