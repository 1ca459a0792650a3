"""36 epochs in mixed precision with layer-wise rates: the schedule of ConvNeXt's detectors.

Mirrors mmdet `configs/convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py`: the warm-up takes 1000
iterations instead of 500.
"""

_base_ = ['./steps_3x.py', './adamw_layerwise.py']

param_scheduler = [dict(_base_.param_scheduler[0], end=1000), _base_.param_scheduler[1]]
optim_wrapper = dict(type='DenseAmpOptimWrapper')
