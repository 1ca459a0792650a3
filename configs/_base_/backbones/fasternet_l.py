"""FasterNet-L with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='FasterNet',
    arch='l',
    out_norm=dict(type='BN'),  # as in the authors' detectors: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='fasternet_l'),
)
channels = [192, 384, 768, 1536]
