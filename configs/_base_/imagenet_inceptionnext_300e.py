"""InceptionNeXt-T/S/B on ImageNet-1K. Expected (Table 4): 82.3, 83.5 and 84.0 % top-1.

Each GPU has batch statistics of its own; they are averaged before validation, as in timm's training script.
Drop path T/S/B 0.1/0.3/0.4 (Table 9), in the leaves.
"""

_base_ = './imagenet_300e.py'

model = dict(head=dict(type='InceptionNeXtHead'))
custom_hooks = [dict(type='SyncBuffersHook')]
