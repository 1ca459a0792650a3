"""RetinaNet on COCO, 12 epochs, 8 GPUs x 2 images: PoolFormer's recipe.

Mirrors mmdet `configs/retinanet/retinanet_r50_fpn_1x_coco.py`. Differs in the optimizer, which is that of PoolFormer's
released configs: AdamW 1e-4, weight decay 1e-4 on every parameter, no clipping. Neither InceptionNeXt nor FasterNet was
published with RetinaNet; no drop path, as in PoolFormer's detectors.

Expected of PoolFormer, for scale: S12 36.2, S24 38.9, S36 39.5 box AP.
"""

_base_ = [
    './models/retinanet_fpn.py',
    './datasets/coco_detection.py',
    './schedules/steps_1x.py',
    './schedules/adamw_uniform.py',
    './runtime/det.py',
]
