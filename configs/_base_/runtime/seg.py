"""Segmentation's runtime. Mirrors mmseg `configs/_base_/default_runtime.py`; differs as `common.py` says.

One more difference: cuDNN's benchmark mode stays off. Whole-image testing meets a new size with almost every image,
so each would be benchmarked again.
"""

_base_ = './common.py'

custom_imports = dict(
    imports=['backbones', 'dense', 'dense.data.seg_folder', 'dense.evaluation.mean_iou'], allow_failed_imports=False
)
default_scope = 'mmseg'
visualizer = dict(type='SegLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
tta_model = dict(type='SegTTAModel')
