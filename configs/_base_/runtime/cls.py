"""Classification's runtime; MMEngine alone runs it. Fixed image sizes make cuDNN's benchmark mode worth its time."""

_base_ = './common.py'

custom_imports = dict(imports=['backbones', 'dense', 'dense.classify'], allow_failed_imports=False)
default_scope = 'mmengine'
env_cfg = dict(cudnn_benchmark=True)
visualizer = dict(type='Visualizer', vis_backends=_base_.vis_backends, name='visualizer')
