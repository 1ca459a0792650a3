"""Multi-scale deformable attention.

Zhu et al., Deformable DETR, 2020, equation 3 (https://arxiv.org/abs/2010.04159): each query takes a weighted sum of
bilinear samples at its own points on every level of a feature pyramid.

Legend of shapes: B images, K pixels of all levels, M heads of D channels, Q queries, L levels, P points per level.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.compat.ops.common import needs_determinism, vector_jacobian, without_autocast, working_dtype


def multi_scale_deformable_attention(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum weighted samples over levels and points; replaces ``multi_scale_deformable_attn_pytorch`` of mmcv.

    Args:
        value: Pixels of all levels in reading order, shape (B, K, M, D).
        value_spatial_shapes: Height and width of each level, shape (L, 2), integers whose products sum to K.
        sampling_locations: Points ``(x, y)`` with the map's borders at 0 and 1, shape (B, Q, M, L, P, 2). Points
            outside contribute 0.
        attention_weights: Shape (B, Q, M, L, P).

    Returns:
        Shape (B, Q, M * D), dtype of ``value``. The arithmetic is in float32 or better.

    Raises:
        ValueError: The levels' pixels do not sum to K.
    """
    shapes = torch.as_tensor(value_spatial_shapes).tolist()
    num_pixels = [height * width for height, width in shapes]
    if sum(num_pixels) != value.shape[1]:
        raise ValueError(
            f'value has {value.shape[1]} pixels, but the levels {shapes} have {sum(num_pixels)}\n'
            'flatten the feature maps whose shapes are given'
        )
    batch, _, heads, channels = value.shape
    dtype = working_dtype(value, sampling_locations)
    sample = _sample_in_fixed_order if needs_determinism(value) else _sample
    with without_autocast(value):
        # B, M, ... so that images and heads together are the batch of the sampler
        grids = sampling_locations.to(dtype).transpose(1, 2).flatten(0, 1) * 2 - 1  # B*M, Q, L, P, 2
        weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # B*M, Q, L, P
        output = value.new_zeros(batch * heads, channels, grids.shape[1], dtype=dtype)
        for level, pixels in enumerate(value.to(dtype).split(num_pixels, dim=1)):
            maps = pixels.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shapes[level])
            samples = sample(maps, grids[:, :, level])  # B*M, D, Q, P
            output = output + (samples * weights[:, None, :, level]).sum(-1)
    # B*M, D, Q -> B, Q, M*D
    return output.view(batch, heads * channels, -1).transpose(1, 2).contiguous().to(value.dtype)


def attend(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Call :func:`multi_scale_deformable_attention`; replaces ``MultiScaleDeformableAttnFunction.apply``.

    Args:
        value: Shape (B, K, M, D).
        value_spatial_shapes: Shape (L, 2).
        value_level_start_index: First pixel of each level, shape (L,); follows from the shapes.
        sampling_locations: Shape (B, Q, M, L, P, 2).
        attention_weights: Shape (B, Q, M, L, P).
        im2col_step: Images that mmcv's kernel takes at once; has no effect here.

    Returns:
        Shape (B, Q, M * D), dtype of ``value``.
    """
    return multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Interpolate maps (B, C, H, W) at points (B, Q, P, 2) of [-1, 1]; (B, C, Q, P), 0 outside."""
    return F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=False)


def _sample_in_fixed_order(maps: Tensor, grid: Tensor) -> Tensor:
    """Interpolate like :func:`_sample`, but by indexing, whose backward pass adds in a fixed order."""
    batch, _, height, width = maps.shape
    extent = grid.new_tensor([width, height])
    points = (grid + 1) * extent / 2 - 0.5  # pixel centres lie at whole numbers
    corner = points.floor()
    fraction = points - corner
    image = torch.arange(batch, device=maps.device)[:, None, None]
    channels_last = maps.permute(0, 2, 3, 1)
    samples = channels_last.new_zeros(())
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        step = grid.new_tensor([dx, dy])
        neighbour = corner + step
        weight = (step * fraction + (1 - step) * (1 - fraction)).prod(-1)
        inside = ((neighbour >= 0) & (neighbour < extent)).all(-1)
        x, y = torch.minimum(neighbour.clamp(min=0), extent - 1).long().unbind(-1)
        samples = samples + channels_last[image, y, x] * (weight * inside)[..., None]
    return samples.permute(0, 3, 1, 2)


# The calling convention of mmcv's compiled extension.


def _ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    def attend_to(v: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(v, value_spatial_shapes, locations, weights)

    grads = vector_jacobian(attend_to, [value, sampling_locations, attention_weights], grad_output)
    for total, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        total += grad


KERNELS: dict[str, Callable] = {
    'ms_deform_attn_forward': attend,
    'ms_deform_attn_backward': _ms_deform_attn_backward,
}
