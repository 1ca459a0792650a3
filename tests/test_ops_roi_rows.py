"""Does average RoIAlign by rows of the map equal torchvision's, gradients included, and is it faster on a CPU?"""

import statistics
import time
import warnings

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dense.compat.ops import roi_rows
from dense.compat.ops.roi import roi_align

SHAPE = 3, 40, 21, 26  # of the map, at a quarter of the image's size
SCALE = 0.25
REGIONS = {
    'inside': [[0, 3.2, 1.7, 20.1, 15.9], [1, 40.4, 30.3, 72.7, 57.1], [2, 11.1, 6.3, 13.9, 9.2]],
    'sizes': [[n % 3, 5.3, 3.1, 5.3 + 7.7 * n, 3.1 + 61.3 / n] for n in range(1, 13)],
    'partly_outside': [[0, -9.5, -7.2, 12.3, 11.8], [1, 75.5, 60.1, 160.2, 144.3], [2, -3.9, 80.1, 108.3, 88.9]],
    'outside': [[0, 200, 200, 280, 300], [1, -90, -80, -40, -30]],
    'without_extent': [[0, 24, 24, 24, 24], [1, 18, 10, 36, 10], [2, 30, 30, 20, 20], [0, 3, 3, 9, 9]],
    'huge': [[0, 0, 0, 104, 84], [1, -200, -300, 400, 500], [2, -3000, 10, 3000, 20]],
    'on_pixels': [[0, 2, 2, 2 + 4 * n, 2 + 4 * n] for n in range(1, 20)],
    'none': [],
}
SIZES = [(1, 1), (2, 3), (7, 7)]
CASES = [
    (kind, size, ratio, aligned)
    for kind in REGIONS
    for size in SIZES
    for ratio in (0, 1, 2, 3)
    for aligned in (True, False)
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative to the largest value


def regions_of(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(REGIONS[kind], dtype=dtype).reshape(-1, 5)


def map_of(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    values = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return values.contiguous(memory_format=layout).requires_grad_()


def pooled_and_gradient(pool, features: Tensor) -> tuple[Tensor, Tensor]:
    pooled = pool(features)
    weights = torch.randn(pooled.shape, dtype=pooled.dtype, generator=torch.Generator().manual_seed(1))
    return pooled.detach(), torch.autograd.grad(pooled, features, weights)[0]


def assert_near(result: Tensor, expected: Tensor) -> None:
    assert result.shape == expected.shape and result.dtype == expected.dtype
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE[result.dtype] * largest)


@pytest.fixture
def only_rows(monkeypatch: pytest.MonkeyPatch):
    """Return torchvision's kernel, and let whoever else calls it fail."""
    kernel = torchvision.ops.roi_align

    def refuse(*arguments: object) -> None:
        raise AssertionError('torchvision.ops.roi_align was called')

    monkeypatch.setattr(torchvision.ops, 'roi_align', refuse)
    monkeypatch.setattr(roi_rows, 'MOST_PIXELS_PER_BIN', 10**9)
    return kernel


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('kind', list(REGIONS))
def test_values_and_gradients_are_those_of_the_kernel(kind: str, dtype, layout) -> None:
    rois, features = regions_of(kind, dtype), map_of(SHAPE, dtype, layout)
    cases = [case[1:] for case in CASES if case[0] == kind]
    for size, ratio, aligned in cases:

        def by_rows(x: Tensor, size=size, ratio=ratio, aligned=aligned) -> Tensor:
            return roi_rows.average(x, rois, size, spatial_scale=SCALE, sampling_ratio=ratio, aligned=aligned)

        def by_kernel(x: Tensor, size=size, ratio=ratio, aligned=aligned) -> Tensor:
            return torchvision.ops.roi_align(x, rois, size, SCALE, ratio, aligned)

        results, expected = pooled_and_gradient(by_rows, features), pooled_and_gradient(by_kernel, features)
        for result, reference in zip(results, expected, strict=True):
            assert_near(result, reference)
            assert not result.numel() or result.is_contiguous(memory_format=layout)
    assert len(cases) == 24


@pytest.mark.parametrize('limits', [(1, 1), (60, 500), (1 << 12, 1 << 13)])
@pytest.mark.parametrize('ratio', [0, 2])
def test_blocks_of_any_size_give_the_same(limits: tuple[int, int], ratio: int, monkeypatch) -> None:
    rois = torch.cat([regions_of(kind) for kind in REGIONS])
    features = map_of(SHAPE, torch.float64, torch.channels_last)

    def pool(x: Tensor) -> Tensor:
        return roi_rows.average(x, rois, (7, 5), spatial_scale=SCALE, sampling_ratio=ratio, aligned=True)

    at_once = pooled_and_gradient(pool, features)
    monkeypatch.setattr(roi_rows, 'FORWARD_READS', limits[0])
    monkeypatch.setattr(roi_rows, 'BACKWARD_READS', limits[1])
    for result, expected in zip(pooled_and_gradient(pool, features), at_once, strict=True):
        assert_near(result, expected)


def test_reads_that_are_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held, embedding_bag = [], torch.nn.functional.embedding_bag

    def watch(reads: Tensor, *arguments: Tensor, **options: object) -> Tensor:
        held.append(len(reads))
        return embedding_bag(reads, *arguments, **options)

    monkeypatch.setattr(roi_rows.F, 'embedding_bag', watch)
    monkeypatch.setattr(roi_rows, 'FORWARD_READS', 1 << 16)
    monkeypatch.setattr(roi_rows, 'BACKWARD_READS', 1 << 17)
    rois = torch.tensor([[0.0, -50 * n, -40 * n, 200 + 50 * n, 160 + 40 * n] for n in range(12)])
    features = map_of((1, 32, 160, 200), torch.float32, torch.channels_last)
    pooled = roi_rows.average(features, rois, (7, 7), spatial_scale=1.0, sampling_ratio=0, aligned=True)
    # The larger regions hold 7 * 160 * 200 reads in each strip of their bins, at the most; no two strips come together.
    assert max(held) <= 7 * 160 * 200 and len(held) > 12
    held.clear()
    pooled.sum().backward()
    assert max(held) <= 7 * 160 * 200 and len(held) > 12
    expected = torchvision.ops.roi_align(features.detach(), rois, (7, 7), 1.0, 0, True)
    assert_near(pooled.detach(), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('channels', [roi_rows.MIN_CHANNELS, 256])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_roi_align_takes_the_rows(layout, channels: int, dtype: torch.dtype, only_rows) -> None:
    rois, features = regions_of('sizes', dtype), map_of((3, channels, 21, 26), dtype, layout)
    results = pooled_and_gradient(lambda x: roi_align(x, rois, 7, SCALE), features)
    expected = pooled_and_gradient(lambda x: only_rows(x, rois, (7, 7), SCALE, 0, True), features)
    for result, reference in zip(results, expected, strict=True):
        assert_near(result, reference)


def test_roi_align_leaves_to_torchvision_what_is_faster_there(only_rows, monkeypatch) -> None:
    monkeypatch.setattr(roi_rows, 'MOST_PIXELS_PER_BIN', 4)
    few_channels = map_of((1, roi_rows.MIN_CHANNELS - 1, 8, 8), torch.float32, torch.channels_last)
    few_bins = map_of((1, 64, 60, 60), torch.float32, torch.contiguous_format)
    for features in (few_channels, few_bins):
        with pytest.raises(AssertionError, match='was called'):
            roi_align(features, regions_of('inside')[:1].float(), 7)
    assert roi_align(few_bins.contiguous(memory_format=torch.channels_last), regions_of('inside')[:1].float(), 7).any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_is_pooled_in_full(dtype: torch.dtype, autocast: bool, only_rows) -> None:
    rois = regions_of('inside', torch.float32)
    narrow = map_of(SHAPE, torch.float32, torch.channels_last).detach().to(dtype).requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=autocast):
        result = roi_align(narrow, rois, 3, SCALE)
    expected = only_rows(wide, rois, (3, 3), SCALE, 0, True)
    result.sum().backward()
    expected.sum().backward()
    assert result.dtype == narrow.grad.dtype == dtype
    torch.testing.assert_close(result, expected.to(dtype), rtol=0.01, atol=1e-3)
    torch.testing.assert_close(narrow.grad, wide.grad.to(dtype), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_gradcheck(ratio: int, aligned: bool) -> None:
    rois = torch.tensor([[0, 0.3, 0.9, 3.1, 2.8], [1, -2.0, 1.1, 6.3, 9.7]], dtype=torch.float64)
    features = map_of((2, 2, 4, 5), torch.float64, torch.contiguous_format)

    def pool(x: Tensor) -> Tensor:
        return roi_rows.average(x, rois, (2, 2), spatial_scale=1.0, sampling_ratio=ratio, aligned=aligned)

    assert torch.autograd.gradcheck(pool, features)


def test_a_second_derivative_is_refused(only_rows) -> None:
    features = map_of(SHAPE, torch.float64, torch.channels_last)
    pooled = roi_align(features, regions_of('inside'), 2, SCALE)
    (gradient,) = torch.autograd.grad((pooled**2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize('layout', LAYOUTS)
def test_results_repeat_to_the_bit_under_deterministic_algorithms(layout, only_rows) -> None:
    rois, features = regions_of('sizes', torch.float32).repeat(40, 1), map_of(SHAPE, torch.float32, layout)
    rois[:, 1:] += torch.rand(len(rois), 4, generator=torch.Generator().manual_seed(2))
    torch.use_deterministic_algorithms(True)
    try:
        results = [pooled_and_gradient(lambda x: roi_align(x, rois, 7, SCALE), features) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize('ratio', [0, 2])
def test_regions_that_are_not_finite_neither_crash_nor_spread(ratio: int) -> None:
    rois = regions_of('inside').repeat(3, 1)
    rois[0, 1], rois[1, 3], rois[2, 1:3], rois[3, 1:] = torch.nan, torch.inf, -torch.inf, torch.nan
    features = map_of(SHAPE, torch.float64, torch.channels_last)

    def pool(regions: Tensor) -> Tensor:
        return roi_rows.average(features, regions, (3, 3), spatial_scale=SCALE, sampling_ratio=ratio, aligned=True)

    torch.testing.assert_close(pool(rois)[4:], pool(rois[4:]))
    assert not pool(rois)[:4].any()


def test_an_index_beyond_the_images_is_an_error() -> None:
    rois = torch.tensor([[3.0, 0, 0, 40, 40]])
    with pytest.raises(ValueError, match='allowed are indices'):
        roi_align(map_of(SHAPE, torch.float32, torch.channels_last), rois, 7, SCALE)


def test_recorded_graphs_keep_the_kernel() -> None:
    rois, features = regions_of('inside', torch.float32), map_of(SHAPE, torch.float32, torch.channels_last)

    def pool(x: Tensor) -> Tensor:
        return roi_align(x, rois, 3, SCALE, 2)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracing is deprecated, yet mmengine counts operations by it
        traced = torch.jit.trace(pool, features.detach(), check_trace=False)
    assert 'roi_align' in str(traced.graph)
    compiled = torch.compile(pool, backend='aot_eager', fullgraph=True)
    assert_near(compiled(features).detach(), pool(features).detach())


def test_tensors_without_values_keep_the_kernel() -> None:
    with FakeTensorMode():
        features, rois = torch.empty(SHAPE), torch.empty(6, 5)
        assert roi_align(features.contiguous(memory_format=torch.channels_last), rois, 3, SCALE).shape == (6, 40, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_rows_take_less_than_half_of_the_kernel_s_time(layout) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(512, 2, generator=generator) * torch.tensor([1216.0, 800.0])
    extent = 8 * (1000 / 8) ** torch.rand(512, 2, generator=generator)
    rois = torch.cat([torch.zeros(512, 1), corners, corners + extent], 1)
    features = map_of((1, 256, 200, 304), torch.float32, layout)
    pools = {
        'rows': lambda x: roi_align(x, rois, 7, SCALE),
        'kernel': lambda x: torchvision.ops.roi_align(x, rois, (7, 7), SCALE, 0, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(3):
        for name, pool in pools.items():
            start = time.process_time()
            pooled_and_gradient(pool, features)
            seconds[name].append(time.process_time() - start)
    assert statistics.median(seconds['rows']) * 2 < statistics.median(seconds['kernel']), seconds
