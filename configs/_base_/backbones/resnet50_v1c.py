"""ResNet-50 v1c (three 3x3 convolutions in the stem) with OpenMMLab's ImageNet-1K weights: mmseg's own class.

Mirrors the backbone of mmseg `configs/_base_/models/upernet_r50.py`; its stages end in a norm and an activation and
need no norm on the outputs.
"""

backbone = dict(
    type='ResNetV1c',
    depth=50,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c'),
)
channels = [256, 512, 1024, 2048]
