"""Image classification with the tools that serve detection and segmentation; importing it registers its classes.

A classifier is a backbone of :mod:`backbones` with its paper's head: it trains the weights that detectors and
segmenters start from, and validates published ones. MMEngine runs it; the augmentation is timm's.
"""

from dense.classify import hooks, metric, sampler, schedule, transforms
from dense.classify.augment import BatchAugment
from dense.classify.classifier import ImageClassifier
from dense.classify.heads import ConvNeXtHead, FasterNetHead, InceptionNeXtHead
from dense.data import image_folder

__all__ = [
    'BatchAugment',
    'ConvNeXtHead',
    'FasterNetHead',
    'ImageClassifier',
    'InceptionNeXtHead',
    'hooks',
    'image_folder',
    'metric',
    'sampler',
    'schedule',
    'transforms',
]
