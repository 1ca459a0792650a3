"""Classification of your own images at 64x64 pixels, 30 epochs from scratch: minutes on one CPU core.

Our own. No mixing and no erasing: 30 epochs are too few to profit from them.
"""

_base_ = [
    './models/classifier.py',
    './datasets/own_64x64.py',
    './schedules/adamw_30e_small.py',
    './runtime/cls.py',
]
model = dict(head=dict(type='InceptionNeXtHead'))
