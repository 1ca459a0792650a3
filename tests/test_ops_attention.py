"""Does multi-scale deformable attention, called as models call it, do what its definition says?"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from dense.compat import extension
from dense.compat.ops import attention as served

extension.install()

from mmcv.ops import MultiScaleDeformableAttention  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import (  # noqa: E402
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]


class ThroughTheExtension(Function):
    """mmcv's autograd function as it was before its ``apply`` was replaced."""

    forward = staticmethod(MultiScaleDeformableAttnFunction.forward)
    backward = staticmethod(MultiScaleDeformableAttnFunction.backward)


LEVELS = {'one': [(4, 5)], 'pyramid': [(6, 4), (3, 2), (1, 1)], 'odd': [(1, 7), (5, 1)]}
SPREADS = {'inside': (0.1, 0.9), 'around_the_border': (-0.2, 1.2), 'outside': (3.0, 5.0)}
CASES = [(levels, spread, batch) for levels in LEVELS for spread in SPREADS for batch in (1, 2)]


def inputs_of(levels: str, spread: str, batch: int, device: str = 'cpu') -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return value, shapes, locations and weights in float64; 3 queries, 2 heads of 3 channels, 2 points."""
    rng = torch.Generator().manual_seed(0)
    shapes = torch.tensor(LEVELS[levels])
    low, high = SPREADS[spread]
    value = torch.randn(batch, int(shapes.prod(1).sum()), 2, 3, generator=rng, dtype=torch.float64)
    places = torch.rand(batch, 3, 2, len(shapes), 2, 2, generator=rng, dtype=torch.float64) * (high - low) + low
    weights = torch.rand(batch, 3, 2, len(shapes), 2, generator=rng, dtype=torch.float64)
    value, places, weights = (tensor.to(device).requires_grad_() for tensor in (value, places, weights))
    return value, shapes.to(device), places, weights


def attention_by_definition(value: np.ndarray, shapes: list, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum weighted bilinear samples, one point at a time; pixel centres lie at half coordinates."""
    batch, queries, heads, _, points, _ = places.shape
    result = np.zeros((batch, queries, heads, value.shape[3]))
    for b, q, m, level, p in np.ndindex(batch, queries, heads, len(shapes), points):
        height, width = shapes[level]
        first = sum(h * w for h, w in shapes[:level])
        x, y = places[b, q, m, level, p] * (width, height) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[b, q, m, level, p]
                    result[b, q, m] += share * value[b, first + row * width + column, m]
    return result.reshape(batch, queries, -1)


def starts_of(shapes: Tensor) -> Tensor:
    return torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('entry', ['function', 'apply'])
@pytest.mark.parametrize(('levels', 'spread', 'batch'), CASES)
def test_attention_matches_the_definition(levels: str, spread: str, batch: int, entry: str, device: str) -> None:
    value, shapes, places, weights = inputs_of(levels, spread, batch, device)
    expected = attention_by_definition(
        value.detach().cpu().numpy(), LEVELS[levels], *(t.detach().cpu().numpy() for t in (places, weights))
    )
    if entry == 'function':
        result = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
    else:
        result = MultiScaleDeformableAttnFunction.apply(value, shapes, starts_of(shapes), places, weights, 64)
    np.testing.assert_allclose(result.detach().cpu(), expected, rtol=1e-9, atol=1e-9)


GRADCHECK_CASES = [(levels, spread) for levels in ('pyramid', 'odd') for spread in ('inside', 'around_the_border')]


@pytest.mark.parametrize('fixed_order', [False, True])
@pytest.mark.parametrize(('levels', 'spread'), GRADCHECK_CASES)
def test_gradcheck(levels: str, spread: str, fixed_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, 'needs_determinism', lambda tensor: fixed_order)
    value, shapes, places, weights = inputs_of(levels, spread, 1)

    def attend(v: Tensor, p: Tensor, w: Tensor) -> Tensor:
        return multi_scale_deformable_attn_pytorch(v, shapes, p, w)

    assert torch.autograd.gradcheck(attend, (value, places, weights), fast_mode=True)
    if fixed_order:  # PyTorch's grid_sample has no second derivative
        assert torch.autograd.gradgradcheck(attend, (value, places, weights), fast_mode=True)


@pytest.mark.parametrize(('levels', 'spread', 'batch'), CASES)
def test_fixed_order_and_the_extension_give_the_same(
    levels: str, spread: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for way in ('kernel', 'fixed_order', 'extension'):
        monkeypatch.setattr(served, 'needs_determinism', lambda tensor, way=way: way == 'fixed_order')
        value, shapes, places, weights = inputs_of(levels, spread, batch)
        if way == 'extension':
            result = ThroughTheExtension.apply(value, shapes, starts_of(shapes), places, weights, 64)
        else:
            result = multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
        results.append([result.detach(), value.grad, places.grad, weights.grad])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_keeps_exact_locations(dtype: torch.dtype) -> None:
    value, shapes, places, weights = (t.detach() for t in inputs_of('pyramid', 'inside', 2))
    value = value.to(dtype)
    exact = multi_scale_deformable_attn_pytorch(value.float(), shapes, places.float(), weights.float())
    narrow = value.clone().requires_grad_()
    result = multi_scale_deformable_attn_pytorch(narrow, shapes, places.float(), weights.float())
    result.sum().backward()
    assert result.dtype == narrow.grad.dtype == dtype
    torch.testing.assert_close(result, exact.to(dtype))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('device', DEVICES)
def test_the_module_under_autocast(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(32, num_heads=2, num_levels=3, num_points=2, batch_first=True).to(device)
    shapes = torch.tensor(LEVELS['pyramid'], device=device)
    memory = torch.randn(2, int(shapes.prod(1).sum()), 32, device=device)
    query = torch.randn(2, 5, 32, device=device, requires_grad=True)
    where = {
        'reference_points': torch.rand(2, 5, 3, 2, device=device),
        'spatial_shapes': shapes,
        'level_start_index': starts_of(shapes),
    }
    module.eval()
    exact = module(query, value=memory, **where)
    with torch.autocast(device, dtype=dtype):
        result = module(query, value=memory, **where)
    result.sum().backward()
    torch.testing.assert_close(result.float(), exact, rtol=0.1, atol=0.1)
    assert torch.isfinite(query.grad).all()


def test_no_query_gives_an_empty_result() -> None:
    value, shapes, places, weights = inputs_of('pyramid', 'inside', 2)
    result = multi_scale_deformable_attn_pytorch(value, shapes, places[:, :0], weights[:, :0])
    result.sum().backward()
    assert result.shape == (2, 0, 6) and value.grad.abs().sum() == 0


def test_levels_that_do_not_fit_the_pixels_are_named() -> None:
    value, shapes, places, weights = inputs_of('pyramid', 'inside', 1)
    with pytest.raises(ValueError, match='value has 30 pixels, but the levels'):
        multi_scale_deformable_attn_pytorch(value[:, 1:], shapes, places, weights)
