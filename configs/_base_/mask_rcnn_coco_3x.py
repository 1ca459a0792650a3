"""Mask R-CNN on COCO as ConvNeXt is trained: 36 epochs, many scales and crops, mixed precision, 8 GPUs x 2 images.

Mirrors mmdet `configs/convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py`: AdamW 1e-4, weight decay 0.05,
layer-wise rates (0.95). InceptionNeXt has no published COCO recipe and takes the same one: its depths are ConvNeXt's.

Drop path (in the leaves): T 0.4 as published. S and B were published with Cascade Mask R-CNN only and take its 0.6 and
0.7. InceptionNeXt-A, four times smaller than T, takes the 0.1 of its ImageNet training. Layer scale 1.0 is ConvNeXt's
start; pretrained weights replace it.

Expected of ConvNeXt-T: 46.2/41.7 box/mask AP.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance_ms_crop.py',
    './schedules/adamw_layerwise_3x.py',
    './runtime/det.py',
]
model = dict(backbone=dict(layer_scale_init_value=1.0))
