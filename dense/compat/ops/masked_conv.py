"""Convolution at the marked pixels only, in the calling convention of mmcv's compiled extension.

mmcv's own function multiplies the columns by the weight and calls these two around it. It has no backward pass: its
gradients are None.

Legend of shapes: one image of C channels, H and W of the map, KH x KW kernel, P marked pixels, stride 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _im2col(
    input: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write what the kernel sees at each marked pixel into ``data_col`` (C * KH * KW, P), zeros beyond the border."""
    padded = F.pad(input[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=input.device)[:, None, None]  # KH, 1, P
    columns = mask_w_idx + torch.arange(kernel_w, device=input.device)[:, None]  # KW, P
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def _col2im(
    columns: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, output: Tensor, height: int, width: int, channels: int
) -> None:
    """Write the results (C, P) to the marked pixels of ``output`` (1, C, H, W)."""
    output[0, :, mask_h_idx, mask_w_idx] = columns.to(output.dtype)


KERNELS: dict[str, Callable] = {
    'masked_im2col_forward': _im2col,
    'masked_col2im_forward': _col2im,
}
