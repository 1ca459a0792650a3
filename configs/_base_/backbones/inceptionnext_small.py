"""InceptionNeXt-Small with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='InceptionNeXt',
    arch='small',
    out_norm=dict(type='SyncBN'),  # the authors' choice for segmentation: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='inceptionnext_small'),
)
channels = [96, 192, 384, 768]
