"""Everything that detection and segmentation need around a backbone.

Importing this package makes mmcv-lite, MMDetection and MMSegmentation run on the installed PyTorch without a
compiler (:mod:`dense.compat`) and registers the classes that configs name. Import it before ``mmdet`` or ``mmseg``.
"""
