"""FasterNet-L on ImageNet-1K. Expected (Table 3): 83.5 % top-1."""

_base_ = './imagenet_fasternet_wide.py'

model = dict(train_cfg=dict(mixup=0.7))
optim_wrapper = dict(clip_grad=dict(max_norm=0.01))
