"""UperNet on ADE20K as the ResNets are trained: 160,000 iterations of SGD, 4 GPUs x 4 images of 512x512 pixels.

Mirrors mmseg `configs/upernet/upernet_r50_4xb4-160k_ade20k-512x512.py`; differs in the scales of multi-scale testing
(`datasets/ade20k_512x512.py` says how). Expected for ResNet-50, by mmseg's model zoo: 42.05 mIoU single-scale, 42.78
multi-scale.
"""

_base_ = [
    './models/upernet.py',
    './datasets/ade20k_512x512.py',
    './schedules/sgd_160k.py',
    './runtime/seg.py',
]
model = dict(data_preprocessor=dict(size=(512, 512)))
