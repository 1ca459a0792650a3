"""ADE20K whose test images are stretched to the next multiples of 32 after resizing, as Semantic FPN is evaluated.

Mirrors the data of mmseg `configs/poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py`; PoolFormer's authors call
the step AlignResize. Every map of the pyramid is then exactly twice the next one's size; without it their networks lose
about 1 mIoU. Differs: the training data is not repeated 50 times, which only changed how often the old loader was
restarted; here an endless sampler runs through it. Multi-scale testing aligns every scale.
"""

_base_ = './ade20k_512x512.py'

_align = dict(type='ResizeToMultiple', size_divisor=32)

val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(2048, 512), keep_ratio=True),
            _align,
            # After the resizes: the truth keeps the size of the photo, in which the metric is computed.
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            _base_.tta_pipeline[1].transforms[0],  # six scales
            [_align],
            *_base_.tta_pipeline[1].transforms[1:],  # flip, truth, packing
        ],
    ),
]
