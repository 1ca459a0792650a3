"""ConvNeXt and its variants with smaller and partial kernels on ImageNet-1K.

The InceptionNeXt authors' commands for the variants: the recipe of InceptionNeXt-T with an average of the weights
(decay 0.9999 per update), which is validated and saved. ConvNeXt-T/S/B in their original form get the same, with the
drop path of ConvNeXt's paper, 0.1/0.4/0.5. Drop path is set in the leaves.
Expected top-1 in percent (Tables 1 and 4 of the InceptionNeXt paper): T 82.1, S 83.1, B 83.8; kernel 5 82.0, kernel 3
81.5; kernel 3 on 1/2 of the channels 81.4, 3/8 81.4, 1/4 81.3, 1/8 80.8, 1/16 80.1.
"""

_base_ = './imagenet_300e.py'

model = dict(head=dict(type='ConvNeXtHead'))
custom_hooks = [dict(type='EMAHook', momentum=1e-4, interval=4, update_buffers=True)]  # one update is 4 batches
