"""40,000 iterations of AdamW for Semantic FPN on ADE20K, 32 images per step.

Mirrors the schedule of mmseg `configs/poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py`, PVT's and PoolFormer's
recipe: AdamW 2e-4, weight decay 1e-4 on every parameter, no warm-up, polynomial decay of power 0.9 to 0. Differs: full
precision, since the papers that use the recipe do not speak of another (`--amp` for mixed).
"""

_base_ = './by_iteration.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000)]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(enable=False, base_batch_size=32)  # 8 GPUs x 4 images
