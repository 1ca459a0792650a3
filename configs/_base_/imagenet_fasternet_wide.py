"""FasterNet-M and -L on ImageNet-1K: 8 GPUs x 256 images, half the rate. Otherwise as the smaller ones (Table 6)."""

_base_ = './imagenet_fasternet.py'

train_dataloader = dict(batch_size=256, dataset=dict(transform=dict(auto_augment='rand-m7-mstd0.5-inc1')))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 2e-3, by_epoch=True, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300),
]
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=2048)
