"""Mask R-CNN with FasterNet-M or -L on COCO, 36 epochs, many scales and crops, 8 GPUs x 2 images.

FasterNet was published with the 1x schedule only. Its optimizer, precision and drop path
(`mask_rcnn_coco_1x_fasternet.py`) meet the length, the steps and the augmentation of the usual 3x schedule: mmdet
`configs/swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py`.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance_ms_crop.py',
    './schedules/steps_3x.py',
    './schedules/adamw_uniform.py',
    './runtime/det.py',
]
