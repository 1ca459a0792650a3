"""Do RoIAlign and RoIPool, called as models call them, do what their definitions say?"""

import math

import numpy as np
import pytest
import torch

from dense.compat import extension
from dense.compat.ops import roi as served

extension.install()

from mmcv.ops import RoIAlign, RoIPool, roi_align, roi_pool  # noqa: E402
from mmcv.ops.roi_align import RoIAlignFunction  # noqa: E402
from mmcv.ops.roi_pool import RoIPoolFunction  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
FEATURES = np.random.default_rng(0).normal(size=(2, 3, 9, 12))
REGIONS = {
    'random': [[0, 3.2, 1.7, 20.1, 15.9], [1, 0.4, 0.3, 22.7, 17.1], [0, 11.1, 6.3, 13.9, 9.2]],
    'whole_map': [[1, 0, 0, 24, 18]],
    'beyond_the_map': [[0, -9.5, -7.2, 12.3, 11.8], [1, 15.5, 10.1, 60.2, 44.3], [0, 100, 100, 140, 150]],
    'tiny': [[0, 5.1, 5.2, 5.3, 5.4], [1, 23.9, 17.9, 24, 18]],
    'no_extent': [[0, 6, 6, 6, 6], [1, 4.5, 2.5, 9, 2.5]],
    'equal': [[1, 3, 3, 12, 9]] * 4,
    'none': np.zeros((0, 5)),
}


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate a plane (H, W): 0 beyond one pixel outside, the border's value within it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return (
        plane[top, left] * (1 - dy) * (1 - dx)
        + plane[top, right] * (1 - dy) * dx
        + plane[bottom, left] * dy * (1 - dx)
        + plane[bottom, right] * dy * dx
    )


def roi_align_by_definition(
    features: np.ndarray, rois: np.ndarray, size: tuple, scale: float, ratio: int, mode: str, aligned: bool
) -> np.ndarray:
    result = np.zeros((len(rois), features.shape[1], *size))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        num_y, num_x = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
        for c, i, j in np.ndindex(features.shape[1], *size):
            samples = [
                bilinear(
                    features[int(image), c],
                    y1 + i * bin_h + (a + 0.5) * bin_h / num_y,
                    x1 + j * bin_w + (b + 0.5) * bin_w / num_x,
                )
                for a in range(num_y)
                for b in range(num_x)
            ]
            if samples:
                result[r, c, i, j] = max(samples) if mode == 'max' else sum(samples) / len(samples)
    return result


def roi_pool_by_definition(features: np.ndarray, rois: np.ndarray, size: tuple, scale: float) -> np.ndarray:
    result = np.zeros((len(rois), features.shape[1], *size))
    for r, (image, x1, y1, x2, y2) in enumerate(rois):
        left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if right <= left or bottom <= top:
            continue
        for c, i, j in np.ndindex(features.shape[1], *size):
            rows = slice(
                max(math.floor(top + i * (bottom - top) / size[0]), 0),
                max(math.ceil(top + (i + 1) * (bottom - top) / size[0]), 0),
            )
            columns = slice(
                max(math.floor(left + j * (right - left) / size[1]), 0),
                max(math.ceil(left + (j + 1) * (right - left) / size[1]), 0),
            )
            window = features[int(image), c, rows, columns]
            result[r, c, i, j] = window.max() if window.size else 0
    return result


def numeric_gradient(function, features: np.ndarray, weights: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Differentiate ``(function(features) * weights).sum()`` by central differences."""
    gradient = np.zeros_like(features)
    for place in np.ndindex(*features.shape):
        moved = features.copy()
        moved[place] += step
        above = (function(moved) * weights).sum()
        moved[place] -= 2 * step
        gradient[place] = (above - (function(moved) * weights).sum()) / (2 * step)
    return gradient


ALIGN_CASES = [
    (kind, mode, ratio, aligned)
    for kind in REGIONS
    for mode in ('avg', 'max')
    for ratio in (0, 2)
    for aligned in (True, False)
]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kind', 'mode', 'ratio', 'aligned'), ALIGN_CASES)
def test_roi_align_matches_the_definition(kind: str, mode: str, ratio: int, aligned: bool, device: str) -> None:
    rois = np.array(REGIONS[kind], float).reshape(-1, 5)
    x = torch.tensor(FEATURES, device=device, requires_grad=True)
    arguments = ((3, 2), 0.5, ratio, mode, aligned)
    result = RoIAlign(*arguments)(x, torch.tensor(rois, device=device))
    expected = roi_align_by_definition(FEATURES, rois, *arguments)
    np.testing.assert_allclose(result.detach().cpu(), expected, rtol=1e-9, atol=1e-9)
    result.sum().backward()
    assert x.grad.shape == x.shape and torch.isfinite(x.grad).all()


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('kind', ['random', 'beyond_the_map', 'tiny', 'none'])
def test_roi_align_gradient_is_that_of_the_definition(kind: str, mode: str) -> None:
    features, rois = FEATURES[:, :1, :5, :6], np.array(REGIONS[kind], float).reshape(-1, 5)
    weights = np.random.default_rng(1).normal(size=(len(rois), 1, 2, 2))
    arguments = (rois, (2, 2), 0.25, 2, mode, True)
    expected = numeric_gradient(lambda x: roi_align_by_definition(x, *arguments), features, weights)
    x = torch.tensor(features, requires_grad=True)
    result = roi_align(x, torch.tensor(rois), *arguments[1:])
    (result * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(x.grad, expected, atol=1e-7)


GRADCHECK_CASES = [('avg', 0), ('avg', 2), ('max', 0), ('max', 2), ('pool', 0)]


@pytest.mark.parametrize(('mode', 'ratio'), GRADCHECK_CASES)
def test_gradcheck(mode: str, ratio: int) -> None:
    rois = torch.tensor(REGIONS['random'] + REGIONS['beyond_the_map'], dtype=torch.float64)
    x = torch.tensor(FEATURES[:, :1, :5, :6], requires_grad=True)

    def pool(features: torch.Tensor) -> torch.Tensor:
        if mode == 'pool':
            return roi_pool(features, rois, 2, 0.2)
        return roi_align(features, rois, 2, 0.2, ratio, mode, True)

    assert torch.autograd.gradcheck(pool, x)
    if mode != 'avg':  # torchvision's kernel has no second derivative
        assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', list(REGIONS))
@pytest.mark.parametrize('scale', [0.5, 0.25])
def test_roi_pool_matches_the_definition(kind: str, scale: float, device: str) -> None:
    rois = np.array(REGIONS[kind], float).reshape(-1, 5)
    x = torch.tensor(FEATURES, device=device, requires_grad=True)
    result = RoIPool((3, 2), scale)(x, torch.tensor(rois, device=device))
    expected = roi_pool_by_definition(FEATURES, rois, (3, 2), scale)
    np.testing.assert_array_equal(result.detach().cpu(), expected)
    result.sum().backward()
    assert x.grad.sum() == pytest.approx((expected != 0).sum())


def test_roi_pool_gives_the_gradient_of_ties_to_the_first_pixel() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    roi_pool(x, torch.tensor([[0.0, 0, 0, 3, 3]]), 1).sum().backward()
    assert x.grad.flatten().tolist() == [1.0] + [0.0] * 15


KERNEL_CASES = [(kind, mode) for kind in REGIONS for mode in ('avg', 'max', 'pool')]


@pytest.mark.parametrize(('kind', 'mode'), KERNEL_CASES)
def test_calling_convention_of_the_extension_gives_the_same(kind: str, mode: str) -> None:
    rois = torch.tensor(np.array(REGIONS[kind], float).reshape(-1, 5))
    results = []
    for through_kernels in (False, True):
        x = torch.tensor(FEATURES, requires_grad=True)
        if mode == 'pool':
            result = (RoIPoolFunction.apply if through_kernels else roi_pool)(x, rois, (3, 2), 0.5)
        else:
            result = (RoIAlignFunction.apply if through_kernels else roi_align)(x, rois, (3, 2), 0.5, 0, mode, True)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
        results.append((result.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mode', ['avg', 'max', 'pool'])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_forward_and_backward(dtype: torch.dtype, mode: str, autocast: bool) -> None:
    rois = torch.tensor(REGIONS['random'])  # float32, though the features are narrower
    exact = torch.tensor(FEATURES).to(dtype).float().requires_grad_()
    narrow = exact.detach().to(dtype).requires_grad_()

    def pool(features: torch.Tensor) -> torch.Tensor:
        return roi_pool(features, rois, 3, 0.5) if mode == 'pool' else roi_align(features, rois, 3, 0.5, 0, mode)

    pool(exact).sum().backward()
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        result = pool(narrow)
    result.sum().backward()
    assert result.dtype == narrow.grad.dtype == dtype
    torch.testing.assert_close(result, pool(exact).to(dtype))
    torch.testing.assert_close(narrow.grad.float(), exact.grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', list(REGIONS))
@pytest.mark.parametrize('ratio', [0, 2])
def test_fixed_order_average_equals_the_kernel(
    kind: str, ratio: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rois = torch.tensor(np.array(REGIONS[kind], float).reshape(-1, 5), device=device)
    results = []
    for fixed_order in (False, True):
        monkeypatch.setattr(served, 'needs_determinism', lambda tensor, fixed_order=fixed_order: fixed_order)
        x = torch.tensor(FEATURES, device=device, requires_grad=True)
        result = roi_align(x, rois, (3, 2), 0.5, ratio)
        (result * torch.arange(result.numel(), device=device).view_as(result)).sum().backward()
        results.append((result.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_deterministic_algorithms_repeat_the_gradient_on_cuda() -> None:
    rois = torch.rand(200, 5, device='cuda') * 100
    rois[:, 0], rois[:, 3:] = 0, rois[:, 1:3] + rois[:, 3:]
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            x = torch.ones(1, 8, 50, 50, device='cuda', requires_grad=True)
            (roi_align(x, rois, 7, 0.25) * torch.linspace(0, 1, 7, device='cuda')).sum().backward()
            gradients.append(x.grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*gradients)


def test_max_is_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rois, x = torch.tensor(REGIONS['random'] * 5), torch.tensor(FEATURES).float()
    at_once = roi_align(x, rois, 3, 0.5, 0, 'max')
    monkeypatch.setattr(served, 'SAMPLES_AT_ONCE', 1)
    assert torch.equal(roi_align(x, rois, 3, 0.5, 0, 'max'), at_once)


def test_roi_align_compiles_in_one_graph() -> None:
    rois = torch.tensor(REGIONS['random'])
    compiled = torch.compile(lambda x: roi_align(x, rois, 3, 0.5, 2), backend='aot_eager', fullgraph=True)
    x = torch.tensor(FEATURES, dtype=torch.float32, requires_grad=True)
    result = compiled(x)
    result.sum().backward()
    torch.testing.assert_close(result, roi_align(x, rois, 3, 0.5, 2))


@pytest.mark.parametrize('function', [roi_align, roi_pool])
def test_a_wrong_shape_of_regions_is_named(function) -> None:
    with pytest.raises(ValueError, match=r'\(3, 4\).*\n.*bbox2roi'):
        function(torch.zeros(1, 1, 4, 4), torch.zeros(3, 4), 2)


def test_an_unknown_pool_mode_is_named() -> None:
    with pytest.raises(ValueError, match="'median'"):
        RoIAlign(2, pool_mode='median')(torch.zeros(1, 1, 4, 4), torch.zeros(3, 5))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('num_levels', [1, 2])
def test_detectors_pool_with_exact_regions_in_half_precision(dtype: torch.dtype, autocast: bool, num_levels) -> None:
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=7), 2, [4, 8][:num_levels], finest_scale=12)
    # Slopes tell where samples were taken; in bfloat16 alone these corners would move by up to 4 pixels.
    levels = [torch.arange(1200.0 // stride) - 1080 // stride for stride in (4, 8)]
    feats = [level.expand(1, 2, 50, -1).to(dtype).requires_grad_() for level in levels[:num_levels]]
    rois = torch.tensor([[0, 1101.3, 20.7, 1113.9, 43.2], [0, 1051.3, 31.2, 1097.1, 73.9]])
    exact = extractor([feat.detach().float() for feat in feats], rois)
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        result = extractor(feats, rois)
    result.sum().backward()
    assert result.dtype == dtype and all(torch.isfinite(feat.grad).all() for feat in feats[:1])
    torch.testing.assert_close(result, exact.to(dtype))
