"""Mask R-CNN with slim heads on the mini data set: some minutes on two CPU cores.

Differs from its bases, because 250 steps are few:

- anchors and levels fit objects of 16 to 80 pixels;
- all classes share the box regression, so each box teaches all of it;
- half as many sampled boxes, with a fixed number of samples in each: the gradient of RoIAlign would otherwise cost as
  much as the backbone;
- batch norm in neck and mask head.
"""

_base_ = [
    './models/mask_rcnn_fpn_slim.py',
    './datasets/mini_instances.py',
    './schedules/mini_250i.py',
    './runtime/det.py',
]
_norm = dict(type='BN')

model = dict(
    neck=dict(num_outs=4, norm_cfg=_norm),
    rpn_head=dict(anchor_generator=dict(scales=[5], strides=[4, 8, 16, 32])),  # 20, 40, 80 and 160 pixels
    roi_head=dict(
        bbox_roi_extractor=dict(finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(num_classes=8, reg_class_agnostic=True),
        mask_roi_extractor=dict(finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(num_classes=8, norm_cfg=_norm),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=150), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=150), rcnn=dict(max_per_img=50)),
)
