"""AdamW 1e-4 that treats all parameters alike: weight decay 1e-4 on norms and biases too.

The optimizer of PoolFormer's and FasterNet's detectors. Mirrors the optimizer of mmdet
`configs/pvt/retinanet_pvt-t_fpn_1x_coco.py`, which theirs descends from.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4))
