"""ConvNeXt-Base with its published ImageNet-1K weights (224 px) without EMA, as in the authors' detectors."""

backbone = dict(
    type='ConvNeXt',
    arch='base',
    out_norm=dict(type='LN', eps=1e-6),  # as the authors': raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='convnext_base_noema'),
)
channels = [128, 256, 512, 1024]
