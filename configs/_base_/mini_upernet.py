"""UperNet with slim heads on the mini data set: some minutes on two CPU cores.

Differs from its bases: batch norm that need not be synchronised, and a loss over the pixels that are not yet sure
(probability of the true class below 0.7), since objects cover few pixels and background most.
"""

_base_ = [
    './models/upernet_slim.py',
    './datasets/mini_labels.py',
    './schedules/mini_450i.py',
    './runtime/seg.py',
]
_norm = dict(type='BN')

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    decode_head=dict(
        num_classes=12,
        norm_cfg=_norm,
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=3000),  # of 128 x 128 pixels per image
    ),
    auxiliary_head=dict(num_classes=12, norm_cfg=_norm),
)
