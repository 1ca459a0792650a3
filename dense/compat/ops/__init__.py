"""The ops that models use, computed by PyTorch and torchvision.

One file per family. Each holds functions with the signature of mmcv's Python entry points, which autograd
differentiates, and ``KERNELS``: functions with the calling convention of mmcv's compiled extension (results written
into tensors that the caller made, backward passes apart).
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torchvision

from dense.compat.ops import (
    attention,
    carafe,
    deform,
    deform_kernels,
    deform_roi,
    focal,
    masked_conv,
    nms,
    psa_mask,
    roi,
    sync_bn,
)
from dense.compat.rebind import rebind


def _compiler_version() -> str:
    return f'none: torchvision {torchvision.__version__} and PyTorch serve the ops'


def _compiling_cuda_version() -> str:
    return torch.version.cuda or 'none'


KERNELS: dict[str, Callable] = {
    'get_compiler_version': _compiler_version,
    'get_compiling_cuda_version': _compiling_cuda_version,
    **nms.KERNELS,
    **roi.KERNELS,
    **deform_kernels.KERNELS,
    **attention.KERNELS,
    **focal.KERNELS,
    **carafe.KERNELS,
    **psa_mask.KERNELS,
    **masked_conv.KERNELS,
    **deform_roi.KERNELS,
    **sync_bn.KERNELS,
}

SERVED = {
    'nms': 'torchvision.ops.nms',
    'batched_nms': 'torchvision.ops.nms',
    'soft_nms': 'NumPy',
    'nms_match': 'NumPy',
    'bbox_overlaps': 'PyTorch',
    'RoIAlign (avg)': 'PyTorch on a CPU, else torchvision.ops.roi_align',
    'RoIAlign (max)': 'PyTorch',
    'RoIPool': 'PyTorch',
    'DeformConv2d': 'torchvision.ops.deform_conv2d',
    'ModulatedDeformConv2d': 'torchvision.ops.deform_conv2d',
    'DeformRoIPool': 'PyTorch',
    'MultiScaleDeformableAttention': 'PyTorch',
    'sigmoid_focal_loss': 'PyTorch',
    'softmax_focal_loss': 'PyTorch',
    'carafe': 'PyTorch',
    'PSAMask': 'PyTorch',
    'MaskedConv2d': 'PyTorch',
    'SyncBatchNorm': 'PyTorch',
}

# Module of mmcv.ops, name in it, and its replacement.
FUNCTIONS: tuple[tuple[str, str, Callable], ...] = (
    ('roi_align', 'roi_align', roi.roi_align),
    ('roi_pool', 'roi_pool', roi.roi_pool),
    ('deform_conv', 'deform_conv2d', deform.deform_conv2d),
    ('modulated_deform_conv', 'modulated_deform_conv2d', deform.modulated_deform_conv2d),
    ('deform_roi_pool', 'deform_roi_pool', deform_roi.deform_roi_pool),
    ('multi_scale_deform_attn', 'multi_scale_deformable_attn_pytorch', attention.multi_scale_deformable_attention),
    ('focal_loss', 'sigmoid_focal_loss', focal.sigmoid_focal_loss),
    ('focal_loss', 'softmax_focal_loss', focal.softmax_focal_loss),
    ('carafe', 'carafe', carafe.carafe),
    ('carafe', 'carafe_naive', carafe.carafe),
)

# Where mmcv's own wrapper calls an autograd function by its class: module, class, and the replacement of ``apply``.
APPLY: tuple[tuple[str, str, Callable], ...] = (
    ('nms', 'NMSop', nms.filtered_kept_indices),
    ('nms', 'SoftNMSop', nms.soft_nms),
    ('multi_scale_deform_attn', 'MultiScaleDeformableAttnFunction', attention.attend),
)


def replace(mmcv_ops: ModuleType) -> None:
    """Replace mmcv's functions with these, wherever they are already bound.

    Args:
        mmcv_ops: The imported package ``mmcv.ops``.
    """

    # A module cannot be read as an attribute of the package if a function of the same name hides it.
    def submodule(name: str) -> Any:
        return sys.modules[f'{mmcv_ops.__name__}.{name}']

    for module, name, function in FUNCTIONS:
        rebind(submodule(module), name, function)
    for module, name, function in APPLY:
        getattr(submodule(module), name).apply = staticmethod(function)
    rebind(submodule('nms'), 'batched_nms', nms.in_full_precision(submodule('nms').batched_nms))


def keep_exact_regions(module: ModuleType) -> None:
    """Make mmdet's extractor of region features keep the precision of the regions under autocast.

    It casts the regions to the features' dtype: bfloat16 coordinates above 1024 are multiples of 8 pixels.

    Args:
        module: The imported module of ``SingleRoIExtractor``.
    """
    extractor: Any = module.__dict__['SingleRoIExtractor']
    extractor.forward = roi.with_exact_regions(extractor.forward)
