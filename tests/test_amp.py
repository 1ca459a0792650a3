"""Does mixed precision train on any device, and does it share checkpoints with full precision?"""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

import dense  # noqa: F401
from dense.engine import optim
from dense.engine.optim import DenseAmpOptimWrapper
from dense.errors import UserError

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
ON_CPU, ON_GPU = ('bfloat16', None), ('bfloat16', 'float16', None)
CASES = [('cpu', dtype) for dtype in ON_CPU] + [pytest.param('cuda', dtype, marks=on_gpu) for dtype in ON_GPU]


def make_problem(device: str = 'cpu') -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    x = torch.randn(32, 4, generator=generator)
    return model.to(device), x.to(device), (x.sum(1, keepdim=True) * 0.5).to(device)


def train(wrapper: OptimWrapper, model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        with wrapper.optim_context(model):
            loss = (model(x).float() - y).square().mean()
        wrapper.update_params(loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(('device', 'dtype'), CASES)
def test_it_learns_as_full_precision_does(device: str, dtype: str | None) -> None:
    model, x, y = make_problem(device)
    wrapper = DenseAmpOptimWrapper(torch.optim.SGD(model.parameters(), 0.05), dtype=dtype)
    with wrapper.optim_context(model):
        assert model(x).dtype is wrapper.cast_dtype
    losses = train(wrapper, model, x, y, steps=40)
    reference, x, y = make_problem(device)
    expected = train(OptimWrapper(torch.optim.SGD(reference.parameters(), 0.05)), reference, x, y, steps=40)
    assert losses[-1] < losses[0] / 10
    assert losses == pytest.approx(expected, rel=0.05, abs=5e-3)
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ('device', 'dtype'), [('cpu', torch.bfloat16), pytest.param('cuda', torch.float16, marks=on_gpu)]
)
def test_default_dtype(device: str, dtype: torch.dtype) -> None:
    model, _, _ = make_problem(device)
    wrapper = DenseAmpOptimWrapper(torch.optim.SGD(model.parameters(), 0.05))
    assert wrapper.cast_dtype is dtype
    assert wrapper.loss_scaler.is_enabled() is (dtype is torch.float16)


def test_accumulation_and_clipping() -> None:
    model, x, y = make_problem()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    wrapper = DenseAmpOptimWrapper(optimizer, accumulative_counts=2, clip_grad=dict(max_norm=0.01))
    before = [parameter.clone() for parameter in model.parameters()]
    train(wrapper, model, x, y, steps=1)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    train(wrapper, model, x, y, steps=1)
    squares = [(old - new).square().sum() for old, new in zip(before, model.parameters(), strict=True)]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize('pair', [(OptimWrapper, DenseAmpOptimWrapper), (DenseAmpOptimWrapper, OptimWrapper)])
def test_state_is_exchanged_with_full_precision(pair: tuple[type[OptimWrapper], type[OptimWrapper]]) -> None:
    model, x, y = make_problem()
    source = pair[0](torch.optim.AdamW(model.parameters(), 0.01))
    train(source, model, x, y, steps=3)
    target = pair[1](torch.optim.AdamW(make_problem()[0].parameters(), 0.5))
    state = source.state_dict()
    keys = set(state)
    target.load_state_dict(dict(state))
    assert set(state) == keys
    assert target.param_groups[0]['lr'] == 0.01
    assert target.optimizer.state_dict()['state'][0]['step'] == 3


@pytest.mark.parametrize(
    ('dtype', 'cause'), [('float16', 'needs CUDA'), ('float64', 'unknown dtype'), ('half', 'half')]
)
def test_what_cannot_work_is_refused(dtype: str, cause: str) -> None:
    model, _, _ = make_problem()
    with pytest.raises(UserError, match=cause):
        DenseAmpOptimWrapper(torch.optim.SGD(model.parameters(), 0.05), dtype=dtype)


def test_it_is_built_from_a_config() -> None:
    model, _, _ = make_problem()
    settings = dict(type='DenseAmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), 0.1), dtype='bfloat16')
    assert OPTIM_WRAPPERS.build(settings).cast_dtype is torch.bfloat16


def test_every_dtype_is_tried() -> None:
    assert set(ON_GPU) == {*optim.DTYPES, None}
    assert set(ON_CPU) == set(ON_GPU) - {'float16'}  # which is refused there
