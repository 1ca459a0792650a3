"""Mask R-CNN with FasterNet-S or smaller on COCO: `mask_rcnn_coco_1x_fasternet.py` at twice the learning rate.

Table 7 of the paper: S 2e-4, drop path 0.15. T0, T1 and T2 were not published on COCO; they take the rate of S and,
as drop path, that of their ImageNet training: 0, 0.02 and 0.05.

Expected (Table 4): S 39.9/36.9 box/mask AP.
"""

_base_ = './mask_rcnn_coco_1x_fasternet.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4))
