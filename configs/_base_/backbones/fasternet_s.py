"""FasterNet-S with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='FasterNet',
    arch='s',
    out_norm=dict(type='BN'),  # as in the authors' detectors: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='fasternet_s'),
)
channels = [128, 256, 512, 1024]
