"""Mask R-CNN with FasterNet-S or smaller on COCO: `mask_rcnn_coco_3x_fasternet.py` at twice the learning rate.

As the 1x schedule does (`mask_rcnn_coco_1x_fasternet_small.py`), which is also the source of drop path.
"""

_base_ = './mask_rcnn_coco_3x_fasternet.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4))
