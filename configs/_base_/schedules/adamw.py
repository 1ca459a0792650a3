"""AdamW as every recipe here uses it: betas, and which parameters are not decayed. Recipes set rate and decay.

Mirrors the optimizer of mmseg `configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py`.
Differs in how undecayed parameters are found:

- norm layers by their class instead of by the word `norm` in the name, which would miss `stem.1`, `downsample.0` and
  the heads' `bn`;
- layer scale (`gamma`), which Swin lacks: a gain per channel like a norm's weight, and not decayed in the ImageNet
  training either.

Biases are decayed, as in Swin's recipe.
"""

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(gamma=dict(decay_mult=0.0))),
)
