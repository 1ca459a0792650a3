"""FasterNet-M on ImageNet-1K. Expected (Table 3): 83.0 % top-1."""

_base_ = './imagenet_fasternet_wide.py'

model = dict(train_cfg=dict(mixup=0.5))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
