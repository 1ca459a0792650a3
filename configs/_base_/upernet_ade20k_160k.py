"""UperNet on ADE20K, 160,000 iterations, 4 GPUs x 4 images of 512x512 pixels.

Mirrors mmseg `configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py`, the recipe that the
InceptionNeXt paper follows (section 4.2), as 4 x 4 images instead of 8 x 2. Whole-image testing, full precision.

Drop path is set in the leaves:

- InceptionNeXt T/S/B 0.2/0.3/0.4 (Table 10 of the paper). Atto was never published on ADE20K; 0.1 is its ImageNet rate
  and continues the row downwards;
- FasterNet was never published on ADE20K: S/M/L 0.15/0.2/0.3, the rates of its authors' detection configs. Its output
  norms stay plain batch norms as in those configs, with the statistics of one GPU's four crops (1024 positions on the
  smallest map).

Expected (Table 6): InceptionNeXt T 47.9, S 50.0, B 50.6 mIoU with multi-scale testing (`--tta`). Single-scale figures
were not published; the author says that they are close to ConvNeXt's 46.0, 48.7 and 49.1.
"""

_base_ = [
    './models/upernet.py',
    './datasets/ade20k_512x512.py',
    './schedules/adamw_160k.py',
    './runtime/seg.py',
]
# Images that are smaller than the crop after resizing are padded to it, so that they fit into one batch.
model = dict(data_preprocessor=dict(size=(512, 512)))
