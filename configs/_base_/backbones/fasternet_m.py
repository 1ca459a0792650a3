"""FasterNet-M with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='FasterNet',
    arch='m',
    out_norm=dict(type='BN'),  # as in the authors' detectors: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='fasternet_m'),
)
channels = [144, 288, 576, 1152]
