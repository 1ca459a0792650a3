"""ConvNeXt-Tiny with depthwise kernels of 3 x 3 and its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='ConvNeXt',
    arch='tiny_k3',
    out_norm=dict(type='LN', eps=1e-6),  # as the ConvNeXt authors': raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='convnext_tiny_k3'),
)
channels = [96, 192, 384, 768]
