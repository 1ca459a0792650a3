"""FasterNet-T0 on ImageNet-1K. Expected (Table 3): 71.9 % top-1."""

_base_ = './imagenet_fasternet.py'

model = dict(train_cfg=dict(mixup=0.05))
optim_wrapper = dict(optimizer=dict(weight_decay=0.005))
