"""Does deformable pooling of regions, called as models call it, compute what mmcv's kernel computes?"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.compat import extension
from dense.compat.ops import deform_roi as served

extension.install()

from mmcv.ops import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, deform_roi_pool, roi_align  # noqa: E402
from mmcv.ops.deform_roi_pool import DeformRoIPoolFunction  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
ROIS = {
    'inside': [[0, 2.3, 3.1, 14.7, 11.9], [1, 4.2, 0.7, 9.1, 13.3]],
    'over_the_border': [[0, -6.0, -4.0, 8.0, 9.0], [1, 10.0, 8.0, 30.0, 27.0]],
    'without_extent': [[0, 5.0, 5.0, 5.0, 9.0], [1, 3.0, 3.0, 3.0, 3.0]],
    'none': [],
}
SAMPLINGS = (0, 2)
SIZE, SCALE, GAMMA = (2, 3), 0.5, 0.3


def tensors_of(name: str, device: str = 'cpu') -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 7, 8, generator=rng, dtype=torch.float64)
    rois = torch.tensor(ROIS[name], dtype=torch.float64).reshape(-1, 5)
    offset = torch.randn(len(rois), 2, *SIZE, generator=rng, dtype=torch.float64)
    return features.to(device).requires_grad_(), rois.to(device), offset.to(device).requires_grad_()


def cell(at: float, limit: int) -> tuple[int, int, float]:
    """Return the pixels before and after a coordinate held in the map, and the held coordinate."""
    held = max(at, 0.0)
    low = int(held)
    return (limit - 1, limit - 1, float(limit - 1)) if low >= limit - 1 else (low, low + 1, held)


def by_definition(
    x: np.ndarray, rois: np.ndarray, offset: np.ndarray, grad: np.ndarray, sampling: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk over bins and samples; returns the output and the gradients of features and displacements."""
    output, grad_x, grad_offset = np.zeros_like(grad), np.zeros_like(x), np.zeros_like(offset)
    height, width = x.shape[2:]
    for r, c, i, j in np.ndindex(*grad.shape):
        n = int(rois[r, 0])
        left, top, right, bottom = rois[r, 1:] * SCALE - 0.5
        bins = (bottom - top) / SIZE[0], (right - left) / SIZE[1]
        grid = [sampling or math.ceil(size) for size in bins]
        for a, b in np.ndindex(*grid):
            y = top + GAMMA * (bottom - top) * offset[r, 1, i, j] + (i + (a + 0.5) / grid[0]) * bins[0]
            u = left + GAMMA * (right - left) * offset[r, 0, i, j] + (j + (b + 0.5) / grid[1]) * bins[1]
            if y < -1 or y > height or u < -1 or u > width:
                continue
            (y0, y1, held_y), (x0, x1, held_x) = cell(y, height), cell(u, width)
            share = 1 / (grid[0] * grid[1])
            corners = {}
            for row, part_y in ((y0, 1 - (held_y - y0)), (y1, held_y - y0)):
                for column, part_x in ((x0, 1 - (held_x - x0)), (x1, held_x - x0)):
                    corners[row, column] = corners.get((row, column), 0) + part_y * part_x
            for place, part in corners.items():
                output[r, c, i, j] += share * part * x[(n, c, *place)]
                grad_x[(n, c, *place)] += grad[r, c, i, j] * share * part
            # The slopes, unlike the value, are taken where the point is, not where it is held.
            p = x[n, c]
            slope_x = p[y1, x1] * (y - y0) + p[y0, x1] * (y1 - y) + p[y1, x0] * (y0 - y) + p[y0, x0] * (y - y1)
            slope_y = p[y1, x1] * (u - x0) + p[y1, x0] * (x1 - u) + p[y0, x1] * (x0 - u) + p[y0, x0] * (u - x1)
            grad_offset[r, 0, i, j] += GAMMA * (right - left) * grad[r, c, i, j] * share * slope_x
            grad_offset[r, 1, i, j] += GAMMA * (bottom - top) * grad[r, c, i, j] * share * slope_y
    return output, grad_x, grad_offset


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('function', ['served', 'extension'])
@pytest.mark.parametrize('at_once', [1, served.SAMPLES_AT_ONCE])
@pytest.mark.parametrize('sampling', SAMPLINGS)
@pytest.mark.parametrize('name', ROIS)
def test_pooling_and_its_gradients_match_the_definition(
    name: str, sampling: int, at_once: int, function: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, 'SAMPLES_AT_ONCE', at_once)
    features, rois, offset = tensors_of(name, device)
    pool = deform_roi_pool if function == 'served' else DeformRoIPoolFunction.apply
    result = pool(features, rois, offset, SIZE, SCALE, sampling, GAMMA)
    weights = torch.arange(result.numel(), dtype=result.dtype, device=device).view_as(result).sin()
    result.backward(weights)
    arrays = [tensor.detach().cpu().numpy() for tensor in (features, rois, offset, weights)]
    # The extension's function gives no gradient for displacements of no region at all.
    offset_grad = torch.zeros_like(offset) if offset.grad is None else offset.grad
    expected = by_definition(*arrays, sampling)
    for tensor, numbers in zip((result.detach(), features.grad, offset_grad), expected, strict=True):
        np.testing.assert_allclose(tensor.cpu(), numbers, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_unmoved_bins_are_those_of_roi_align(sampling: int) -> None:
    features, rois, _ = tensors_of('inside')
    result = deform_roi_pool(features, rois, None, SIZE, SCALE, sampling, GAMMA)
    torch.testing.assert_close(result, roi_align(features, rois, SIZE, SCALE, sampling, 'avg', True))


@pytest.mark.parametrize('layer', [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_layers_train_under_autocast(layer: type) -> None:
    torch.manual_seed(0)
    pool = layer(SIZE, 3, deform_fc_channels=8, spatial_scale=SCALE)
    features, boxes, _ = tensors_of('inside')
    features, boxes = features.detach().to(torch.bfloat16).requires_grad_(), boxes.float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = pool(features, boxes)
    result.float().sum().backward()
    assert result.shape == (2, 3, *SIZE) and result.dtype == torch.bfloat16
    assert features.grad is not None and torch.isfinite(features.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in pool.parameters())


def test_what_does_not_fit_is_named() -> None:
    features, rois, offset = tensors_of('inside')
    with pytest.raises(ValueError, match=r'rois have shape .2, 4., allowed is .R, 5.'):
        deform_roi_pool(features, rois[:, 1:], offset, SIZE)
    with pytest.raises(ValueError, match=r'offset has shape .2, 1, 2, 3., allowed is .2, 2, 2, 3.'):
        deform_roi_pool(features, rois, offset[:, :1], SIZE)
