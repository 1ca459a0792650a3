"""The ops that models use, computed by PyTorch and torchvision.

One file per family. Each holds functions with the signature of mmcv's Python entry points, which autograd
differentiates, and ``KERNELS``: functions with the calling convention of mmcv's compiled extension (results written
into tensors that the caller made, backward passes apart).
"""

from collections.abc import Callable
from types import ModuleType

from dense.compat.ops import nms, roi

KERNELS: dict[str, Callable] = {**nms.KERNELS, **roi.KERNELS}
SERVED: dict[str, str] = {'nms': 'torchvision.ops.nms', 'roi_align': 'torchvision.ops.roi_align'}


def replace(mmcv_ops: ModuleType) -> None:
    mmcv_ops.nms  # noqa
    import sys

    sys.modules['mmcv.ops.nms'].NMSop.apply = staticmethod(nms.filtered_kept_indices)
    sys.modules['mmcv.ops.roi_align'].roi_align = roi.roi_align
    mmcv_ops.roi_align = roi.roi_align
