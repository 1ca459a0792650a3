"""Fuses whole detectors and segmentors: :func:`fuse_model`.

MMDetection and MMSegmentation build their necks and heads from mmcv's ``ConvModule``, of which :mod:`backbones` knows
nothing.
"""

import sys
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones.fast.plain_layers import has_forward_of, is_constant_batch_norm, is_plain
from backbones.fuse import fuse

ModelT = TypeVar('ModelT', bound=nn.Module)


def fuse_model(model: ModelT) -> ModelT:
    """Rewrite a model for inference, batch norms of its necks and heads included; see :func:`backbones.fuse.fuse`.

    Args:
        model: In evaluation mode. It is not changed.

    Raises:
        ValueError: The model is in training mode.
    """
    return fuse(model, rewrites=(fold_conv_modules,))


def fold_conv_modules(model: nn.Module) -> None:
    """Fold the batch norm of every mmcv ``ConvModule`` into its convolution, in place.

    Args:
        model: In evaluation mode.
    """
    mmcv_cnn = sys.modules.get('mmcv.cnn')
    if mmcv_cnn is None:  # then no model can have such a module
        return
    for module in model.modules():
        if isinstance(module, mmcv_cnn.ConvModule) and _is_foldable(module, mmcv_cnn.ConvModule):
            is_transposed = isinstance(module.conv, nn.modules.conv._ConvTransposeNd)
            module.conv = fuse_conv_bn_eval(module.conv, module.norm, transpose=is_transposed)
            delattr(module, module.norm_name)
            module.norm_name = None
            module.with_norm = False


def _is_foldable(module: nn.Module, conv_module: type[nn.Module]) -> bool:
    return (
        has_forward_of(module, conv_module)
        and bool(module.with_norm)
        and (
            is_plain(module.conv, nn.Conv2d) or (is_plain(module.conv, nn.ConvTranspose2d) and module.conv.groups == 1)
        )
        and tuple(module.order)[:2] == ('conv', 'norm')
        and is_constant_batch_norm(module.norm)
    )
