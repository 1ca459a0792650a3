"""Efficient convolutional backbones for dense prediction. Importing this package registers them in MMEngine."""

from backbones.convnext import ConvNeXt
from backbones.inceptionnext import InceptionNeXt

__all__ = ['ConvNeXt', 'InceptionNeXt']
