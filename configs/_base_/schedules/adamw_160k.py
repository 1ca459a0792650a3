"""160,000 iterations of AdamW for ADE20K, 16 images per step: Swin's UperNet recipe, which InceptionNeXt follows.

Mirrors mmseg `configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py` on top of
`configs/_base_/schedules/schedule_160k.py`: AdamW 6e-5, weight decay 0.01, linear warm-up over 1500 iterations from
1e-6, then a straight line to 0. The paper (section 4.2, appendix A.2) prints optimizer, rate, batch and length; decay
and warm-up come from Swin's config. No gradient clipping, no layer-wise decay, no mixed precision.
"""

_base_ = ['./by_iteration.py', './adamw.py']

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 4 GPUs x 4 images
