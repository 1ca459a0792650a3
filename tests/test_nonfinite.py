"""Does a run with losses or gradients that are not finite say where they come from, and lose nothing?"""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from toy_run import ToyNet, run_in_two_processes, toy_config

from dense.engine.atomic import AtomicBackend
from dense.engine.culprit import odd_boxes
from dense.engine.finite import SKIPPED, FiniteLossHook, _all_finite, largest_norm
from dense.engine.launch import train
from dense.errors import UserError

NAN, INF = float('nan'), float('inf')


class _Fault:
    """Which steps, counted from 1, of which run have bad outputs or gradients."""

    runner: Any = None
    what = ''
    steps: tuple[int, ...] = ()

    @classmethod
    def is_due(cls, what: str) -> bool:
        return cls.what == what and cls.runner.iter + 1 in cls.steps


class _BadGradient(torch.autograd.Function):
    """Passes values on; its gradient may be NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * NAN if _Fault.is_due('gradient') else gradient


class _Bend(nn.Module):
    """Passes values on, or NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _BadGradient.apply(x * NAN if _Fault.is_due('output') else x)


@MODELS.register_module(force=True)
class BendingNet(ToyNet):
    """A toy network whose layer ``layers.1`` can fail; a batch norm comes after it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        first, norm, dropout, last = self.layers
        self.layers = nn.Sequential(first, _Bend(), norm, dropout, last)


@HOOKS.register_module(force=True)
class Spoil(Hook):
    """Lets the layer fail.

    Args:
        what: ``'output'`` or ``'gradient'``.
        steps: When.
        rank: In which process.
    """

    def __init__(self, what: str, steps: list[int], rank: int = 0) -> None:
        self.fault = what, tuple(steps) if get_rank() == rank else ()

    def before_train(self, runner: Any) -> None:
        _Fault.runner = runner
        _Fault.what, _Fault.steps = self.fault

    def after_train(self, runner: Any) -> None:
        _Fault.what = ''


@pytest.fixture(autouse=True)
def whole() -> Any:
    yield
    _Fault.what = ''


def config(folder: Path, what: str = 'output', bad: tuple[int, ...] = (5,), counts: int = 1, **changes: Any) -> Any:
    cfg = toy_config(folder, steps=8, model=dict(type='BendingNet'), **changes)
    cfg.custom_hooks = [dict(type='Spoil', what=what, steps=list(bad))]
    cfg.optim_wrapper.accumulative_counts = counts
    cfg.param_scheduler = [dict(type='ExponentialLR', gamma=0.9, by_epoch=False)]
    return cfg


def weights(runner: Runner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, msg=name)


SAID = {
    'output': r'the loss of step 5 is not finite: loss nan; the first output that is not finite is that of layers\.1;',
    'gradient': r'the gradients of step 5 are not finite, although its losses are; going back .* that of layers\.0',
}


@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0), dict(type='value', clip_value=1.0)], ids=str)
@pytest.mark.parametrize('what', SAID)
def test_the_run_stops_before_the_update_and_names_the_layer(tmp_path: Path, what: str, clip: Any) -> None:
    cfg = config(tmp_path, what)
    cfg.optim_wrapper.clip_grad = clip
    with pytest.raises(UserError, match=SAID[what]) as caught:
        train(cfg)
    assert '--resume' in caught.value.remedy and 'emergency_iter_4.pth' in caught.value.remedy
    saved = torch.load(tmp_path / 'emergency_iter_4.pth', weights_only=True)
    before = torch.load(tmp_path / 'iter_4.pth', weights_only=True)
    assert_same(saved['state_dict'], before['state_dict'])
    assert saved['meta']['iter'] == 4


def test_an_emergency_checkpoint_that_cannot_be_written_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write = AtomicBackend.write

    def full_disk(self: AtomicBackend, filepath: str, fill: Any) -> str:
        if 'emergency' in str(filepath):
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(self, filepath, fill)

    monkeypatch.setattr(AtomicBackend, 'write', full_disk)
    with pytest.raises(UserError) as caught:
        train(config(tmp_path))
    assert 'emergency_iter' not in caught.value.remedy
    assert 'WARNING: emergency_iter_4.pth cannot be written' in capfd.readouterr().out


@pytest.mark.parametrize('counts', [1, 2])
def test_a_run_goes_on_exactly_from_the_emergency_checkpoint(tmp_path: Path, counts: int) -> None:
    """Mended, it ends where the run ends that never failed; with two steps for an update, it goes back to its start."""
    expected = weights(train(config(tmp_path / 'whole', bad=(), counts=counts)))
    cfg = config(tmp_path / 'bad', bad=(6,), counts=counts)
    with pytest.raises(UserError, match='step 6'):
        train(cfg)
    start = 5 if counts == 1 else 4
    again = config(tmp_path / 'bad', bad=(), counts=counts)
    again.resume, again.load_from = True, str(tmp_path / 'bad' / f'emergency_iter_{start}.pth')
    assert_same(weights(train(again)), expected)


@pytest.mark.parametrize('what', SAID)
def test_an_update_that_is_left_out_leaves_no_trace(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The weights after the bad step are those before it, running statistics included."""
    runner = train(config(tmp_path, what, on_nonfinite='skip:1'))
    saved = [torch.load(tmp_path / f'iter_{step}.pth', weights_only=True) for step in (4, 5, 6)]
    assert_same(saved[0]['state_dict'], saved[1]['state_dict'])
    assert any(not torch.equal(saved[1]['state_dict'][name], saved[2]['state_dict'][name]) for name in weights(runner))
    for place, state in saved[0]['optimizer']['state'].items():
        assert_same(state, saved[1]['optimizer']['state'][place])
    assert all(tensor.isfinite().all() for tensor in weights(runner).values())
    assert 'update left out (1 of at most 1)' in capfd.readouterr().out


def test_a_whole_update_of_several_steps_is_left_out(tmp_path: Path) -> None:
    train(config(tmp_path, bad=(5,), counts=2, on_nonfinite='skip:1'))
    saved = [torch.load(tmp_path / f'iter_{step}.pth', weights_only=True)['state_dict'] for step in (4, 6)]
    assert_same(*saved)


def test_the_number_of_updates_left_out_survives_a_resume(tmp_path: Path) -> None:
    """Two in all are allowed; one before the stop, one after it, and the third ends the run."""
    first = config(tmp_path, bad=(2, 4, 7), on_nonfinite='skip:2')
    first.train_cfg.max_iters = 3
    assert train(first).message_hub.runtime_info[SKIPPED] == 1
    second = config(tmp_path, bad=(2, 4, 7), on_nonfinite='skip:2')
    second.resume = True
    with pytest.raises(UserError, match=r'step 7 .*2 updates have been left out before'):
        train(second)


def test_a_skipping_run_that_stops_and_goes_on_is_the_same_run(tmp_path: Path) -> None:
    expected = weights(train(config(tmp_path / 'whole', bad=(3, 6), on_nonfinite='skip:2')))
    second = config(tmp_path / 'rest', bad=(3, 6), on_nonfinite='skip:2')
    second.resume, second.load_from = True, str(tmp_path / 'whole' / 'iter_4.pth')
    assert_same(weights(train(second)), expected)


TWO = """
import json, torch
from pathlib import Path
from test_nonfinite import config, weights
from dense.engine.launch import train
from dense.errors import UserError
import os
rank = int(os.environ['RANK'])
folder = Path({folder!r})
def run(name, **changes):
    cfg = config(folder / name, what='output', launcher='pytorch', **changes)
    cfg.custom_hooks[0].rank = 1
    return train(cfg)
try:
    run('stop')
    said = 'nothing'
except UserError as error:
    said = error.cause
state = weights(run('skip', on_nonfinite='skip:1'))
learnt = {{name: tensor.tolist() for name, tensor in state.items() if 'running' not in name}}
(folder / f'said{{rank}}.json').write_text(json.dumps([said, learnt]))
"""


@pytest.mark.slow
def test_all_processes_agree_though_only_one_has_bad_values(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    run_in_two_processes(tmp_path, f'sys.path.append({here!r})\n' + TWO.format(folder=str(tmp_path)))
    (said, one), (also, other) = (json.loads((tmp_path / f'said{rank}.json').read_text()) for rank in (0, 1))
    assert said == also and 'the loss of step 5 is not finite' in said and 'layers.1' in said
    assert one == other
    assert (tmp_path / 'stop' / 'emergency_iter_4.pth').is_file()


@pytest.mark.parametrize('value', ['skip', 'skip:0', 'skip:-1', 'ignore', 'skip:1.5', ''])
def test_an_unknown_choice_is_an_error(value: str) -> None:
    with pytest.raises(UserError, match='on_nonfinite'):
        FiniteLossHook(value)


def test_boxes_at_fault_are_named() -> None:
    boxes = torch.tensor([[1, 1, 5, 5], [1, NAN, 5, 5], [4, 4, 4, 9], [0, 0, 900, 9], [-30, 0, 9, 9.0]])
    sample = SimpleNamespace(
        img_path='data/7.jpg', metainfo=dict(img_shape=(20, 20)), gt_instances=SimpleNamespace(bboxes=boxes)
    )
    named = odd_boxes(dict(data_samples=[sample]))
    assert named == [f'[{text}] of 7.jpg' for text in ('1, nan, 5, 5', '4, 4, 4, 9', '0, 0, 900, 9', '-30, 0, 9, 9')]


GRADIENTS: list[tuple[list[float], bool]] = [
    ([1, -2], True),
    ([1, NAN], False),
    ([INF, 0], False),
    ([3e38, 3e38], True),
]


@pytest.mark.parametrize(('values', 'is_fine'), GRADIENTS, ids=str)
def test_gradients_are_finite_or_not_even_where_their_squares_overflow(values: list[float], is_fine: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor(values, dtype=torch.float32)
    optimizer = torch.optim.SGD([parameter, torch.nn.Parameter(torch.zeros(3))], lr=1)
    assert _all_finite(SimpleNamespace(clip_grad_kwargs=None), optimizer) == is_fine
    assert bool(largest_norm([parameter.grad, torch.zeros(3)], INF).isfinite()) == is_fine


class _Scaler:
    """Leaves out the updates of some steps, as float16's loss scaler does where a gradient overflows."""

    def __init__(self, steps: set[int]) -> None:
        self.steps, self.step = steps, 0

    def __call__(self, take: Callable[[], None]) -> None:
        self.step += 1
        if self.step not in self.steps:
            take()


@pytest.mark.parametrize('has_bad_loss', [False, True])
def test_updates_that_a_loss_scaler_leaves_out_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bad_loss: bool
) -> None:
    scaler, step = _Scaler({5}), OptimWrapper.step
    monkeypatch.setattr(OptimWrapper, 'step', lambda self, **kwargs: scaler(lambda: step(self, **kwargs)))
    cfg = config(tmp_path, 'output' if has_bad_loss else 'gradient')
    if has_bad_loss:
        with pytest.raises(UserError, match='the loss of step 5'):
            train(cfg)
    else:
        assert train(cfg).iter == 8


def test_what_is_kept_costs_no_copies_of_weights(tmp_path: Path) -> None:
    """Only running statistics are copied before an update."""
    runner = train(config(tmp_path, bad=()))
    hook = next(hook for hook in runner.hooks if isinstance(hook, FiniteLossHook))
    assert hook._before is not None
    kept = sum(buffer.numel() for buffer in hook._before._buffers)
    assert kept == sum(buffer.numel() for buffer in runner.model.buffers()) == 17
    assert hook._batches == [] and hook._handles == []
