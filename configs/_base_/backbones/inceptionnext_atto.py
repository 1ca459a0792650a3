"""InceptionNeXt-Atto with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='InceptionNeXt',
    arch='atto',
    out_norm=dict(type='SyncBN'),  # the authors' choice for segmentation: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='inceptionnext_atto'),
)
channels = [40, 80, 160, 320]
