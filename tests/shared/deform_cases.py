"""Deformable convolution by its definition, with mmcv's gradients, and the cases that it is compared on."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate a plane (H, W) that continues with zeros."""
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


@dataclass
class Sample:
    """What one sampling point adds to one output number: indices into the arrays, place and mask."""

    output: tuple[int, ...]
    plane: tuple[int, int]
    at: tuple[float, float]
    weight: tuple[int, ...]
    mask: tuple[int, ...]
    offset: tuple[tuple[int, ...], tuple[int, ...]]
    share: float


def samples_of(
    offset: np.ndarray,
    mask: np.ndarray | None,
    weight: np.ndarray,
    stride: tuple,
    padding: tuple,
    dilation: tuple,
    groups: int,
    deform_groups: int,
    channels: int,
) -> Iterator[Sample]:
    """Walk over every pair of an output number and an input channel's sampling point."""
    num_out, per_group, kernel_h, kernel_w = weight.shape
    height, width = offset.shape[2:]
    points = offset.reshape(len(offset), deform_groups, kernel_h, kernel_w, 2, height, width)
    for n, o, i, j in np.ndindex(len(offset), num_out, height, width):
        for c, a, b in np.ndindex(per_group, kernel_h, kernel_w):
            channel = o // (num_out // groups) * per_group + c
            group = channel // (channels // deform_groups)
            tap = (group * kernel_h + a) * kernel_w + b
            dy, dx = points[n, group, a, b, :, i, j]
            row = i * stride[0] - padding[0] + a * dilation[0] + dy
            column = j * stride[1] - padding[1] + b * dilation[1] + dx
            yield Sample(
                output=(n, o, i, j),
                plane=(n, channel),
                at=(row, column),
                weight=(o, c, a, b),
                mask=(n, tap, i, j),
                offset=((n, 2 * tap, i, j), (n, 2 * tap + 1, i, j)),
                share=1.0 if mask is None else mask[n, tap, i, j],
            )


def deform_conv_by_definition(
    x: np.ndarray, offset: np.ndarray, mask: np.ndarray | None, weight: np.ndarray, bias: np.ndarray | None, *geometry
) -> np.ndarray:
    """Sum over kernel elements and channels, one output pixel at a time."""
    result = np.zeros((len(x), len(weight), *offset.shape[2:]))
    for sample in samples_of(offset, mask, weight, *geometry, x.shape[1]):
        result[sample.output] += bilinear(x[sample.plane], *sample.at) * sample.share * weight[sample.weight]
    return result if bias is None else result + bias[:, None, None]


def gradients_by_definition(
    x: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray | None,
    weight: np.ndarray,
    bias: np.ndarray | None,
    grad_output: np.ndarray,
    *geometry,
) -> list[np.ndarray]:
    """Return the gradients of input, offset, mask, weight and bias, of those that there are, as mmcv has them.

    A point at -1 or less, or at the size or more, in either direction is outside and gives none. A point between has
    the slope of the cell that begins at its floor, also where it lies on a whole pixel.
    """
    arrays = dict(x=x, o=offset, m=mask, w=weight)
    grads = {name: np.zeros_like(array) for name, array in arrays.items() if array is not None}
    for sample in samples_of(offset, mask, weight, *geometry, x.shape[1]):
        (y, column), plane = sample.at, x[sample.plane]
        if not (-1 < y < plane.shape[0] and -1 < column < plane.shape[1]):
            continue
        up = grad_output[sample.output]
        value, slopes, shares = cell_of(plane, y, column)
        grads['w'][sample.weight] += up * sample.share * value
        if mask is not None:
            grads['m'][sample.mask] += up * weight[sample.weight] * value
        for index, slope in zip(sample.offset, slopes, strict=True):
            grads['o'][index] += up * weight[sample.weight] * sample.share * slope
        for corner, share in shares.items():
            grads['x'][(*sample.plane, *corner)] += up * weight[sample.weight] * sample.share * share
    return [*grads.values(), *([] if bias is None else [grad_output.sum((0, 2, 3))])]


def cell_of(plane: np.ndarray, y: float, x: float) -> tuple[float, tuple[float, float], dict]:
    """Return value and slopes in y and x at a point inside, and the weight of each pixel around it."""
    top, left = int(np.floor(y)), int(np.floor(x))
    down, right = y - top, x - left
    padded = np.pad(plane, 1)  # the corners may lie in the zeros around the map
    (a, b), (c, d) = padded[top + 1 : top + 3, left + 1 : left + 3]
    slopes = (c - a) * (1 - right) + (d - b) * right, (b - a) * (1 - down) + (d - c) * down
    shares = {}
    for row, column in itertools.product((0, 1), (0, 1)):
        if 0 <= top + row < plane.shape[0] and 0 <= left + column < plane.shape[1]:
            shares[top + row, left + column] = (down if row else 1 - down) * (right if column else 1 - right)
    return bilinear(plane, y, x), slopes, shares


# Name: images, input and output channels, kernel, input size, stride, padding, dilation, groups, deform_groups.
GEOMETRIES = {
    'plain': (2, 2, 3, (3, 3), (5, 6), (1, 1), (1, 1), (1, 1), 1, 1),
    'strided': (1, 2, 2, (3, 3), (7, 6), (2, 1), (1, 2), (1, 1), 1, 1),
    'dilated': (1, 2, 2, (3, 3), (6, 7), (1, 1), (2, 2), (2, 2), 1, 1),
    'grouped': (1, 4, 4, (3, 3), (5, 5), (1, 1), (1, 1), (1, 1), 2, 1),
    'deform_groups': (1, 4, 2, (3, 3), (4, 5), (1, 1), (1, 1), (1, 1), 1, 2),
    'all_groups': (2, 4, 4, (2, 3), (5, 4), (2, 2), (1, 1), (1, 2), 2, 2),
    'pointwise': (1, 3, 2, (1, 1), (3, 4), (1, 1), (0, 0), (1, 1), 1, 1),
    'depthwise': (1, 3, 3, (3, 3), (4, 4), (1, 1), (1, 1), (1, 1), 3, 3),
}
VERSIONS = ('v1', 'v2', 'v2_bias')
# Factor of normal noise; 'whole' rounds it to whole pixels, of which many lie exactly on the border of the padding.
OFFSETS = {'zero': 0.0, 'small': 0.7, 'far': 20.0, 'whole': 1.0}


def tensors_of(name: str, version: str, offset: str, device: str = 'cpu') -> tuple[list[Tensor], tuple]:
    """Return input, offset and weight, or input, offset, mask, weight (and bias), in float64, and the geometry."""
    rng = torch.Generator().manual_seed(0)
    num, channels, num_out, kernel, size, stride, padding, dilation, groups, deform_groups = GEOMETRIES[name]
    out = [(size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
    points = deform_groups * kernel[0] * kernel[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    shifts = draw(num, 2 * points, *out)
    shifts = shifts.round() if offset == 'whole' else shifts * OFFSETS[offset]
    tensors = [draw(num, channels, *size), shifts]
    if version != 'v1':
        tensors.append(draw(num, points, *out).sigmoid())
    tensors.append(draw(num_out, channels // groups, *kernel))
    if version == 'v2_bias':
        tensors.append(draw(num_out))
    tensors = [tensor.to(device).requires_grad_() for tensor in tensors]
    return tensors, (stride, padding, dilation, groups, deform_groups)


def arrays_of(version: str, tensors: list[Tensor]) -> list[np.ndarray | None]:
    """Return input, offset, mask, weight and bias as arrays, None for what the version has not."""
    arrays: list[np.ndarray | None] = [tensor.detach().cpu().numpy() for tensor in tensors]
    if version == 'v1':
        arrays.insert(2, None)
    return arrays if version == 'v2_bias' else [*arrays, None]
