"""InceptionNeXt-Base with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='InceptionNeXt',
    arch='base',
    out_norm=dict(type='SyncBN'),  # the authors' choice for segmentation: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='inceptionnext_base'),
)
channels = [128, 256, 512, 1024]
