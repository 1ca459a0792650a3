"""UperNet with slim heads on your own data in ADE20K's layout, 400 iterations of 8 crops of 256x256 pixels."""

_base_ = [
    './models/upernet_slim.py',
    './datasets/own_256x256.py',
    './schedules/adamw_400i.py',
    './runtime/seg.py',
]
model = dict(data_preprocessor=dict(size=(256, 256)))
