"""AdamW 1e-4 whose rate shrinks by 0.95 per layer towards the input: the optimizer of ConvNeXt's detectors.

Mirrors the optimizer of mmdet `configs/convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py`. Weight decay
0.05, none on vectors (norms, biases, layer scale). Differs: a layer is a group of three blocks whatever the depth,
which makes 6 layers of 18 blocks (T) and 12 of 36 (S, B), as upstream sets them; full precision unless the recipe says
otherwise.
"""

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise'),
)
