"""FasterNet-T1 with its published ImageNet-1K weights (224 px)."""

backbone = dict(
    type='FasterNet',
    arch='t1',
    out_norm=dict(type='BN'),  # as in the authors' detectors: raw stages end in a residual sum
    init_cfg=dict(type='Pretrained', checkpoint='fasternet_t1'),
)
channels = [64, 128, 256, 512]
