"""Detection's runtime. Mirrors mmdet `configs/_base_/default_runtime.py`; differs as `common.py` says."""

_base_ = './common.py'

custom_imports = dict(
    imports=['backbones', 'dense', 'dense.data.coco_folder', 'dense.evaluation.coco'], allow_failed_imports=False
)
default_scope = 'mmdet'
visualizer = dict(type='DetLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
