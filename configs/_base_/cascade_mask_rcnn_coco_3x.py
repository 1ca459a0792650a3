"""Cascade Mask R-CNN on COCO as ConvNeXt-T and -S are trained: 36 epochs, mixed precision, 8 GPUs x 2 images.

Mirrors mmdet `configs/convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py`: AdamW
2e-4, weight decay 0.05, layer-wise rates (0.7). InceptionNeXt has no published COCO recipe and takes the same one: its
depths are ConvNeXt's.

Drop path (in the leaves): T/S/B 0.4/0.6/0.7. Layer scale 1.0 is ConvNeXt's start; pretrained weights replace it.

Expected of ConvNeXt: T 50.4/43.7, S 51.9/45.0, B 52.7/45.6 box/mask AP (mmdet's runs: T 50.3/43.6, S 51.8/44.8).
"""

_base_ = [
    './models/cascade_mask_rcnn_fpn.py',
    './datasets/coco_instance_ms_crop.py',
    './schedules/adamw_layerwise_3x.py',
    './runtime/det.py',
]
model = dict(backbone=dict(layer_scale_init_value=1.0))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_rate=0.7))
