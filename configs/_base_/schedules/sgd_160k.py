"""160,000 iterations of SGD for ADE20K, 16 images per step: the recipe of the ResNets.

Mirrors mmseg `configs/_base_/schedules/schedule_160k.py`: SGD 0.01 with momentum 0.9, weight decay 5e-4 on every
parameter, no warm-up, polynomial decay of power 0.9 to 1e-4.
"""

_base_ = './by_iteration.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-4, by_epoch=False, begin=0, end=160000)]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 4 GPUs x 4 images
