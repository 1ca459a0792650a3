"""Mask R-CNN with heads for small images and few cores: a quarter of the channels, a quarter of the samples.

Our own; differs from `mask_rcnn_fpn.py` in the settings below. Anchors are half as large (16 to 256 pixels), because
an image whose longest side is 320 shows COCO's objects at about half of their usual size.
"""

_base_ = './mask_rcnn_fpn.py'

model = dict(
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=250),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=250)),
)
