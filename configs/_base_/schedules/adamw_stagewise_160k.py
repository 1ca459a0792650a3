"""160,000 iterations of AdamW with stage-wise rates for ADE20K: ConvNeXt's UperNet recipe.

Mirrors the schedule of mmseg `configs/convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py`. Differs from
`adamw_160k.py` in the optimizer only: AdamW 1e-4, weight decay 0.05, mixed precision, and rates that shrink by 0.9 per
group of the backbone's stages, first stages most. Vectors (norms, biases, layer scale) are not decayed. The number of
groups follows from the backbone: 6 for 18 blocks (T), 12 for 36 (S, B), as upstream sets it.
"""

_base_ = './adamw_160k.py'

optim_wrapper = dict(
    _delete_=True,
    type='DenseAmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise'),
)
