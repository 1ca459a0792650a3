"""Semantic FPN on ADE20K, 40,000 iterations, 8 GPUs x 4 images of 512x512 pixels.

Mirrors mmseg `configs/poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py`: PVT's and PoolFormer's recipe, which
the InceptionNeXt paper follows (section 4.2). Test images are aligned to multiples of 32.

Drop path is set in the leaves:

- InceptionNeXt T/S/B 0.1/0.2/0.2 (Table 10 of the paper). Atto was never published on ADE20K; 0 continues the row
  downwards;
- FasterNet was never published on ADE20K: its ImageNet rates, T0 to L 0/0.02/0.05/0.1/0.2/0.3 (Table 6 of its paper);
- ResNet-50 has none.

Expected (Table 7, single-scale): InceptionNeXt T 43.1, S 45.6, B 46.4, ResNet-50 36.7 mIoU. Two runs of one such recipe
differ by about 0.5.
"""

_base_ = [
    './models/semantic_fpn.py',
    './datasets/ade20k_512x512_aligned.py',
    './schedules/adamw_40k.py',
    './runtime/seg.py',
]
# Images that are smaller than the crop after resizing are padded to it, so that they fit into one batch.
model = dict(data_preprocessor=dict(size=(512, 512)))
