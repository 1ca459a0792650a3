"""What :func:`backbones.fuse.fuse` cannot know of: the layers that MMDetection and MMSegmentation build heads from."""

import sys

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones import fuse as fusing
from backbones.layers import BATCH_NORMS


def fold_conv_modules(model: nn.Module) -> None:
    """Fold the batch norm of every mmcv ``ConvModule`` into its convolution, in place.

    Args:
        model: In evaluation mode.
    """
    mmcv_cnn = sys.modules.get('mmcv.cnn')
    if mmcv_cnn is None:  # then no model can have such a module
        return
    for module in model.modules():
        if isinstance(module, mmcv_cnn.ConvModule) and _is_foldable(module):
            is_transposed = isinstance(module.conv, nn.modules.conv._ConvTransposeNd)
            module.conv = fuse_conv_bn_eval(module.conv, module.norm, transpose=is_transposed)
            delattr(module, module.norm_name)
            module.norm_name = None
            module.with_norm = False


def _is_foldable(module: nn.Module) -> bool:
    return (
        bool(module.with_norm)
        and tuple(module.order)[:2] == ('conv', 'norm')
        and isinstance(module.conv, nn.Conv2d | nn.ConvTranspose2d)
        and isinstance(module.norm, BATCH_NORMS)
        and module.norm.running_mean is not None
    )


if fold_conv_modules not in fusing.CONVERTERS:
    fusing.CONVERTERS.append(fold_conv_modules)
