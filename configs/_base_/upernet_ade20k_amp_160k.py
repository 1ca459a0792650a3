"""UperNet on ADE20K as ConvNeXt is trained: 160,000 iterations, 4 GPUs x 4 images of 512x512, mixed precision.

Mirrors mmseg `configs/convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py` and its `small` and `base`
siblings, as 4 x 4 images instead of 8 x 2. Testing slides a window of 512x512 by 341 pixels; with multi-scale testing
(`--tta`) each scale is predicted whole, as ConvNeXt's authors evaluated.

Drop path is set in the leaves: T/S/B 0.4/0.3/0.4, and layer scale 1.0 where no weights replace it.

Expected, single-scale / multi-scale mIoU of ConvNeXt's authors: T 46.0/46.7, S 48.7/49.6, B 49.1/49.9.
"""

_base_ = [
    './models/upernet.py',
    './datasets/ade20k_512x512.py',
    './schedules/adamw_stagewise_160k.py',
    './runtime/seg.py',
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
tta_model = dict(module=dict(test_cfg=dict(mode='whole')))
