"""Does a run that is told to stop save first, and does it then go on as if nothing had happened?"""

import copy
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import run_in_two_processes, same_end, toy_config, two_processes

from dense.console import main
from dense.engine import signals
from dense.engine.atomic import AtomicBackend
from dense.engine.launch import train
from dense.errors import RunStopped

EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C works, in the processes that tests start, too, even if the suite runs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('os.fsync', lambda descriptor: None)


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends a signal to its own process at some moment of a run.

    Args:
        moment: Method of this hook at which it is sent.
        step: Number of steps completed by then.
        number: The signal.
    """

    priority = 'VERY_HIGH'

    def __init__(self, moment: str, step: int, number: int = signal.SIGTERM) -> None:
        self.moment, self.step, self.number = moment, step, number

    def _send(self, runner: Any, moment: str) -> None:
        if (moment, runner.iter) == (self.moment, self.step):
            signal.raise_signal(self.number)

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self._send(runner, 'step')

    def after_val_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self._send(runner, 'validation')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._send(runner, 'save')


def config(work_dir: Path, *, interval: int = 3, hooks: tuple[dict, ...] = (), **more: Any) -> Config:
    cfg = toy_config(work_dir, steps=10, custom_hooks=list(hooks), **more)
    cfg.default_hooks.checkpoint.interval = interval
    return cfg


def rows(work_dir: Path) -> dict[tuple[int, bool], dict[str, float]]:
    """What was logged: (step, whether it is a validation) -> losses, rates and scores; the last run's, if repeated."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in map(json.loads, path.read_text().splitlines()):
            kept = {key: row[key] for key in row if 'loss' in key or key in ('lr', 'score')}
            found[row['step'], 'score' in row] = kept
    return found


MOMENTS = {
    'in a step': ('step', 4, 5),
    'in a step before a validation': ('step', 3, 4),
    'in the last step': ('step', 9, 10),
    'in a validation': ('validation', 4, 4),
    'in the last validation': ('validation', 10, 10),
    'while saving': ('save', 5, 6),
    'in a step that saves': ('step', 2, 3),
}


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool, bool], Config]:
    """Function (counted in epochs, saved by epoch) -> config of a run that has ended; each runs once."""

    @functools.cache
    def run(epochs: bool, by_epoch: bool) -> Config:
        cfg = config(tmp_path_factory.mktemp('whole'), hooks=(EMA,), epochs=epochs)
        cfg.default_hooks.checkpoint.by_epoch = by_epoch
        train(cfg)
        return cfg

    return run


@pytest.mark.parametrize('moment', MOMENTS)
@pytest.mark.parametrize('epochs', [False, True], ids=['steps', 'epochs'])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    moment: str, epochs: bool, tmp_path: Path, undisturbed: Callable[[bool, bool], Config]
) -> None:
    what, sent, stopped = MOMENTS[moment]
    if epochs and what == 'validation':
        sent = stopped = 5 if sent == 4 else 10
    whole = undisturbed(epochs, epochs and what == 'validation')
    cfg = copy.deepcopy(whole)
    cfg.work_dir = str(tmp_path)
    again = copy.deepcopy(cfg)
    cfg.custom_hooks.append(dict(type='SignalHook', moment=what, step=sent))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunStopped):
        train(cfg)
    assert signal.getsignal(signal.SIGTERM) is handler
    (newest,) = [path for path in tmp_path.glob('*.pth') if steps_of(path) == stopped]
    assert (tmp_path / 'last_checkpoint').read_text() == str(newest)
    again.resume = True
    train(again)
    same_end(tmp_path, Path(whole.work_dir))
    assert rows(tmp_path) == rows(Path(whole.work_dir)), 'validations, too'


def steps_of(path: Path) -> int:
    return torch.load(path, weights_only=True)['meta']['iter']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
def test_the_exit_status_says_that_a_run_was_saved(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sends = dict(type='SignalHook', moment='step', step=1, number=int(number))
    assert main.run(lambda: train(config(tmp_path, hooks=(sends,)))) == main.STOPPED == 75
    out, err = capfd.readouterr()
    path = tmp_path / 'iter_2.pth'
    assert f'stopped by {signals.name_of(number)} after 2 steps; saved {path}; --resume continues it' in out
    assert 'finishing the step and saving' in err and path.is_file()


def test_only_the_newest_file_between_two_intervals_is_kept(tmp_path: Path) -> None:
    sends = dict(type='SignalHook', moment='step')
    for step in (3, 4, 7):  # between 3, 6 and 9
        cfg = config(tmp_path, hooks=(dict(sends, step=step),), resume=step > 3)
        with pytest.raises(RunStopped):
            train(cfg)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_3.pth', 'iter_6.pth', 'iter_8.pth']
    assert sorted(path.name for path in tmp_path.glob('*.sha256')) == [f'iter_{step}.pth.sha256' for step in (3, 6, 8)]


def test_a_run_without_a_checkpoint_hook_of_ours_is_saved_too(tmp_path: Path) -> None:
    cfg = config(tmp_path, hooks=(dict(type='SignalHook', moment='step', step=3),))
    cfg.default_hooks.checkpoint = None
    with pytest.raises(RunStopped):
        train(cfg)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_a_full_disk_at_the_stop_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: AtomicBackend, path: str, fill: Any) -> str:
        raise OSError(28, 'No space left on device')

    cfg = config(tmp_path, hooks=(dict(type='SignalHook', moment='step', step=1),))
    monkeypatch.setattr(AtomicBackend, 'write', fail)
    assert main.run(lambda: train(cfg)) == main.USER_ERROR


# The module alone: importing the package takes seconds.
LISTEN = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location('signals', {module!r})
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
first, second, echoes, pause = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'True', float(sys.argv[4])
with signals.stop_request() as request:
    request.listen(echoes=echoes)
    signal.raise_signal(first)
    assert request.signal == first
    time.sleep(pause)
    signal.raise_signal(second)
    time.sleep(0.01)
    sys.exit(7)
"""
USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ('first', 'second', 'echoes', 'pause', 'status'),
    [
        (TERM, TERM, False, 0, -TERM),
        (INT, INT, False, 0, -INT),  # as Python itself ends
        (USR1, TERM, False, 0, -TERM),
        (TERM, TERM, True, 0, 7),  # torchrun forwards a signal that Slurm also sends to every process
        (TERM, INT, True, 0, -INT),
        (TERM, TERM, True, 1.1, -TERM),
    ],
)
def test_a_second_signal_ends_the_process_at_once(
    first: int, second: int, echoes: bool, pause: float, status: int
) -> None:
    command = [sys.executable, '-c', LISTEN.format(module=signals.__file__)]
    arguments = [str(int(first)), str(int(second)), str(echoes), str(pause)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.stop_request() as request:
            request.listen(echoes=False)
            signal.raise_signal(signal.SIGINT)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


SEVERAL = """
import json, os, signal, sys, time
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import toy_config
from dense.engine.launch import train
from dense.errors import RunStopped
work_dir, rank = Path({work_dir!r}), int(os.environ['RANK'])

@HOOKS.register_module()
class OneRank(Hook):
    priority = 'VERY_HIGH'
    def __init__(self, moment, step): self.moment, self.step = moment, step
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(0.02)
        if rank == 1 and self.moment == 'step' and runner.iter == self.step:
            signal.raise_signal(signal.SIGTERM)
    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.moment == 'validation' and runner.iter == self.step:
            time.sleep(1.2)
            if rank == 1 and batch_idx == 0:
                signal.raise_signal(signal.SIGTERM)

def config(name, **more):
    cfg = toy_config(work_dir / name, steps=200, launcher='pytorch', **more)
    cfg.default_hooks.checkpoint.interval = 100
    cfg.train_cfg.val_interval = 100
    cfg.val_dataloader.batch_size = 1
    return cfg

train(config('whole'))
for name, step in (('step', 30), ('validation', 100)):
    try:
        train(config(name, custom_hooks=[dict(type='OneRank', moment=name, step=step)]))
        steps = None
    except RunStopped as stop:
        steps = stop.signal
    (work_dir / f'{{name}}-{{rank}}.json').write_text(json.dumps(steps))
    train(config(name, resume=True))
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    run_in_two_processes(tmp_path, SEVERAL.format(work_dir=str(tmp_path)))
    for name in ('step', 'validation'):
        assert {json.loads((tmp_path / f'{name}-{rank}.json').read_text()) for rank in (0, 1)} == {int(signal.SIGTERM)}
        same_end(tmp_path / name, tmp_path / 'whole')
        assert rows(tmp_path / name) == rows(tmp_path / 'whole')


LAUNCHED = """
import os, sys, time
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import toy_config
from dense.console import main
from dense.engine.launch import train
work_dir, rank = Path({work_dir!r}), os.environ['RANK']

@HOOKS.register_module()
class Slow(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        time.sleep(0.05)
        if runner.iter == 10:
            (work_dir / f'ready-{{rank}}').touch()

cfg = toy_config(work_dir / 'run', steps=2000, launcher='pytorch', custom_hooks=[dict(type='Slow')])
cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval = 2000
status = main.run(lambda: train(cfg))
(work_dir / f'status-{{rank}}').write_text(str(status))
sys.exit(status)
"""


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_and_saves(tmp_path: Path) -> None:
    """As Slurm and a terminal send it: to the launcher, and to every process, too."""
    command = two_processes(tmp_path, LAUNCHED.format(work_dir=str(tmp_path)))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while not all((tmp_path / f'ready-{rank}').exists() for rank in (0, 1)):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()[-3000:]
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert [(tmp_path / f'status-{rank}').read_text() for rank in (0, 1)] == ['75', '75']
    (path,) = (tmp_path / 'run').glob('*.pth')
    assert steps_of(path) >= 10


def test_a_checkpoint_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a step takes a minute. 4 is saved by the clock, 6 by the interval, 10 by both."""

    @HOOKS.register_module(force=True)
    class Clock(Hook):
        priority = 'VERY_HIGH'
        now = 0.0

        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            Clock.now += 60

        def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
            saved.append(runner.iter + 1)

    saved: list[int] = []
    for module in ('saving', 'stopping'):
        monkeypatch.setattr(f'dense.engine.{module}.time', SimpleNamespace(monotonic=lambda: Clock.now))
    cfg = config(tmp_path, interval=6, hooks=(dict(type='Clock'),), save_every=4)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    train(cfg)
    assert saved == [4, 6, 10]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_10.pth', 'iter_6.pth']
