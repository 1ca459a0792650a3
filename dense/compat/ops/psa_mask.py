"""Masks of point-wise spatial attention, spread over the whole map.

Zhao et al., PSANet: Point-wise Spatial Attention Network for Scene Parsing, 2018, section 3.2. Each pixel has a mask
over the pixels around it, by their displacement; these functions store it by target pixel instead. mmcv's own
autograd function calls both, so it need not be replaced.

Legend of shapes: N images, H and W of the map, MH x MW displacements of a mask, the central one of which is 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

COLLECT, DISTRIBUTE = 0, 1


def _relabel(
    maps: Tensor, size: tuple[int, int], had: tuple[int, int], wanted: tuple[int, int], half: tuple[int, int], sign: int
) -> Tensor:
    """Turn displacements into targets (sign -1) or targets into displacements (sign 1), pixel by pixel.

    Each displacement has at most one target and vice versa, so each direction is a selection, which sums nothing and
    is the gradient of the other.

    Args:
        maps: Shape (N, product of ``had``, H, W).
        size: H and W.
        had: Rows and columns of what the channels of ``maps`` represent.
        wanted: Rows and columns of what those of the result represent.
        half: Row and column of displacement 0.
        sign: -1 or 1.

    Returns:
        Shape (N, product of ``wanted``, H, W); 0 if there is no counterpart.
    """
    device = maps.device
    own = [torch.arange(size[axis], device=device) - half[axis] for axis in (0, 1)]
    place = [torch.arange(wanted[axis], device=device)[:, None] + sign * own[axis] for axis in (0, 1)]
    inside = [(place[axis] >= 0) & (place[axis] < had[axis]) for axis in (0, 1)]
    exists = (inside[0][:, None, :, None] & inside[1][None, :, None, :]).flatten(0, 1)
    channel = (place[0][:, None, :, None] * had[1] + place[1][None, :, None, :]).flatten(0, 1)
    channel = channel.where(exists, torch.zeros_like(channel)).expand(len(maps), -1, -1, -1)
    return maps.gather(1, channel).masked_fill(~exists, 0)


def _own_pixel_last(masks: Tensor, psa_type: int) -> Tensor:
    """Return (N, H * W, H, W) with the target before the pixel itself; swaps the two for masks that distribute."""
    return masks if psa_type == COLLECT else masks.flatten(2).transpose(1, 2).unflatten(2, masks.shape[2:])


def _check_type(psa_type: int) -> None:
    if psa_type not in (COLLECT, DISTRIBUTE):
        raise ValueError(f'psa_type is {psa_type}, allowed are 0 (collect) and 1 (distribute)\nuse one of these')


def _forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    _check_type(psa_type)
    size, mask, half = (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask)
    output.copy_(_own_pixel_last(_relabel(input, size, mask, size, half, -1), psa_type))


def _backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    _check_type(psa_type)
    size, mask, half = (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask)
    grad_input.copy_(_relabel(_own_pixel_last(grad_output, psa_type), size, size, mask, half, 1))


KERNELS: dict[str, Callable] = {
    'psamask_forward': _forward,
    'psamask_backward': _backward,
}
