"""Mask R-CNN with FasterNet-M or -L on COCO, 12 epochs, 8 GPUs x 2 images: the paper's recipe.

Table 7 of the paper and the authors' configs, which build on the 1x schedule of mmdet
(`configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py`): AdamW 1e-4, weight decay 1e-4 on every parameter, no clipping, full
precision. Batch norm is neither frozen nor synchronised: each GPU normalises by its own two images.

Drop path (in the leaves): M 0.2, L 0.3.

Expected (Table 4): M 43.0/39.1, L 44.0/39.9 box/mask AP.
"""

_base_ = [
    './models/mask_rcnn_fpn.py',
    './datasets/coco_instance.py',
    './schedules/steps_1x.py',
    './schedules/adamw_uniform.py',
    './runtime/det.py',
]
