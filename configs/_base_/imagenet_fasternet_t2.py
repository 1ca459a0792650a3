"""FasterNet-T2 on ImageNet-1K. Expected (Table 3): 78.9 % top-1."""

_base_ = './imagenet_fasternet.py'

model = dict(train_cfg=dict(mixup=0.1))
train_dataloader = dict(dataset=dict(transform=dict(auto_augment='rand-m5-mstd0.5-inc1')))
optim_wrapper = dict(optimizer=dict(weight_decay=0.02))
