"""FasterNet-S on ImageNet-1K. Expected (Table 3): 81.3 % top-1."""

_base_ = './imagenet_fasternet.py'

model = dict(train_cfg=dict(mixup=0.3))
train_dataloader = dict(dataset=dict(transform=dict(auto_augment='rand-m7-mstd0.5-inc1')))
optim_wrapper = dict(optimizer=dict(weight_decay=0.03))
