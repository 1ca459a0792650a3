"""ConvNeXt-Tiny with 3 x 3 kernels on 1/8 of the channels and its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='ConvNeXt',
    arch='tiny_k3_par1_8',
    out_norm=dict(type='LN', eps=1e-6),  # as the ConvNeXt authors': raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='convnext_tiny_k3_par1_8'),
)
channels = [96, 192, 384, 768]
