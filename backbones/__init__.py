"""Efficient convolutional backbones for dense prediction. Importing this package registers them in MMEngine."""

from backbones.convnext import ConvNeXt
from backbones.fasternet import FasterNet
from backbones.inceptionnext import InceptionNeXt
from backbones.timm_backbone import TimmBackbone

__all__ = ['ConvNeXt', 'FasterNet', 'InceptionNeXt', 'TimmBackbone']
