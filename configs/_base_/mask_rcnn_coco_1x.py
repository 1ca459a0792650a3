"""Mask R-CNN on COCO, 12 epochs, 8 GPUs x 2 images.

InceptionNeXt has no published COCO recipe or result. Where the numbers come from:

- heads, data, 12 epochs, steps, warm-up: the 1x schedule of mmdet
  (`configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py`), which all peers share;
- AdamW 1e-4, weight decay 0.05, 16 images per step, no clipping: InternImage's and VAN's Mask R-CNN 1x, ConvNeXt's 3x;
- drop path T/S/B 0.1/0.2/0.3 (in the leaves): InceptionMamba's Mask R-CNN 1x, whose blocks descend from
  InceptionNeXt's. Atto continues the row downwards with 0;
- layer scale: initial value of the ImageNet training, 1e-6; pretrained weights replace it.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance.py',
    './schedules/adamw_1x.py',
    './runtime/det.py',
]
