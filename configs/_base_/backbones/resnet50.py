"""ResNet-50 with torchvision's ImageNet-1K weights, the baseline of detection: mmdet's own class.

Mirrors the backbone of mmdet `configs/_base_/models/mask-rcnn_r50_fpn.py`: stem and first stage frozen, batch norm in
eval mode. Its stages end in a norm and an activation and need no norm on the outputs.
"""

backbone = dict(
    type='ResNet',
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    frozen_stages=1,
    norm_cfg=dict(type='BN', requires_grad=True),
    norm_eval=True,
    style='pytorch',
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
channels = [256, 512, 1024, 2048]
