"""FasterNet-T0 with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='FasterNet',
    arch='t0',
    out_norm=dict(type='BN'),  # as in the authors' detectors: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='fasternet_t0'),
)
channels = [40, 80, 160, 320]
