"""Efficient convolutional backbones for dense prediction. Importing this package registers them in MMEngine."""

from backbones.inceptionnext import InceptionNeXt

__all__ = ['InceptionNeXt']
