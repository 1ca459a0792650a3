"""Mask R-CNN with ConvNeXt on COCO, 12 epochs, 8 GPUs x 2 images.

ConvNeXt's authors published 3x schedules only. Where the numbers come from:

- heads, data, 12 epochs, steps, warm-up: the 1x schedule of mmdet
  (`configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py`), which all peers share;
- AdamW 1e-4, weight decay 0.05, layer-wise rates: ConvNeXt's Mask R-CNN 3x, here in full precision;
- drop path T/S/B 0.2/0.3/0.4 (in the leaves): InternImage's Mask R-CNN 1x, whose rate, decay and batch are the same.
  The partial-convolution variants take T's;
- layer scale 1.0 as in the 3x recipe; pretrained weights replace it.

Expected of ConvNeXt (MambaOut's Table 2, recipe not given there): T 44.2/40.1, S 45.4/41.8, B 47.0/42.7 box/mask AP.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance.py',
    './schedules/steps_1x.py',
    './schedules/adamw_layerwise.py',
    './runtime/det.py',
]
model = dict(backbone=dict(layer_scale_init_value=1.0))
