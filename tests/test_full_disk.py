"""Does a full disk cost a run neither its life nor its last good checkpoint?"""

import errno
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from toy_run import ToyMetric, end_of, same_end, toy_config

from dense.console.output import log_into
from dense.engine import disk_space
from dense.engine.atomic import AtomicBackend
from dense.engine.launch import train
from dense.errors import UserError

EMA = dict(type='EMAHook', momentum=0.1)


@METRICS.register_module()
class Falling(ToyMetric):
    """A score that falls by one in each validation, from -1."""

    number = 0

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        self.number -= 1
        return dict(score=self.number)


class Disk:
    """Refuses to write some checkpoints.

    Attributes:
        is_full: Tells by the name of a file whether it is refused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full: Callable[[str], bool] = lambda name: False
        write = AtomicBackend.write

        def limited(backend: AtomicBackend, path: str, fill: Callable[[Any], Any]) -> str:
            return write(backend, path, self._broken(fill) if self.is_full(Path(path).name) else fill)

        monkeypatch.setattr(AtomicBackend, 'write', limited)

    def _broken(self, fill: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def broken(file: Any) -> None:
            def some(data: bytes) -> int:
                raise OSError(self.number, os.strerror(self.number))

            file.file = SimpleNamespace(write=some, flush=lambda: None)
            fill(file)

        return broken

    number = errno.ENOSPC


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def config(work_dir: Path, *, steps: int = 8, keep: int = 1, background: bool = True, **more: Any) -> Config:
    cfg = toy_config(work_dir, steps=steps, **more)
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=keep, background=background)
    return cfg


def names(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.iterdir() if path.name.startswith(('iter', 'best')))


@pytest.mark.parametrize('background', [False, True], ids=['waiting', 'in the background'])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_training_goes_on_and_tries_again(
    number: int, background: bool, disk: Disk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(config(tmp_path / 'whole'))
    capfd.readouterr()
    disk.number, disk.is_full = number, lambda name: name in ('iter_4.pth', 'iter_6.pth')
    train(config(tmp_path / 'run', background=background))
    lines = [line for line in capfd.readouterr().out.splitlines() if 'written' in line]
    last_good = f'the last good one is {tmp_path / "run" / "iter_2.pth"}'
    for line, step in zip(lines[:2], (4, 6), strict=True):
        assert f'iter_{step}.pth could not be written: {os.strerror(number)}' in line and last_good in line
    assert 'can be written again' in lines[2] and len(lines) == 3
    assert names(tmp_path / 'run') == ['iter_8.pth', 'iter_8.pth.sha256']
    same_end(tmp_path / 'run', tmp_path / 'whole')


def test_the_last_good_file_is_kept_and_the_end_is_an_error(disk: Disk, tmp_path: Path) -> None:
    disk.is_full = lambda name: name.startswith(('iter_4', 'iter_6', 'iter_8'))
    with pytest.raises(
        UserError, match=r'iter_8\.pth could not be written: No space .* last good one is .*iter_2\.pth'
    ):
        train(config(tmp_path / 'run'))
    assert names(tmp_path / 'run') == ['iter_2.pth', 'iter_2.pth.sha256']
    disk.is_full = lambda name: False
    train(config(tmp_path / 'run', resume=True))
    train(config(tmp_path / 'whole'))
    same_end(tmp_path / 'run', tmp_path / 'whole')


def test_the_best_checkpoint_is_kept_until_a_better_one_is_written(disk: Disk, tmp_path: Path) -> None:
    """The toy's score falls here; less is better."""
    disk.is_full = lambda name: name == 'best_score_iter_8.pth'
    cfg = config(tmp_path, steps=12)
    cfg.default_hooks.checkpoint.update(save_best='score', rule='less')
    cfg.val_evaluator = dict(type='Falling')
    train(cfg)
    content = torch.load(end_of(tmp_path), weights_only=True)['message_hub']['runtime_info']
    assert names(tmp_path) == [f'best_score_iter_12.pth{end}' for end in ('', '.sha256')] + [
        f'iter_12.pth{end}' for end in ('', '.sha256')
    ]
    assert content['best_ckpt'] == str(tmp_path / 'best_score_iter_12.pth')
    disk.is_full = lambda name: name.startswith('best') and '4' not in name
    cfg = config(tmp_path / 'again', steps=12)
    cfg.default_hooks.checkpoint.update(save_best='score', rule='less')
    cfg.val_evaluator = dict(type='Falling')
    train(cfg)
    assert 'best_score_iter_4.pth' in names(tmp_path / 'again')
    content = torch.load(end_of(tmp_path / 'again'), weights_only=True)['message_hub']['runtime_info']
    assert content['best_ckpt'] == str(tmp_path / 'again' / 'best_score_iter_4.pth')
    assert content['best_score'] == -1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / 'disk'
    place.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(place)], capture_output=True).returncode:
        pytest.skip('mounting a file system needs permission')
    yield place
    subprocess.run(['umount', '--lazy', str(place)], check=True)


@HOOKS.register_module()
class FillHook(Hook):
    """Fills the disk before one step, and empties it before another."""

    priority = 'VERY_HIGH'

    def __init__(self, place: str, full_at: int, free_at: int) -> None:
        self.ballast, self.full_at, self.free_at = Path(place, 'ballast'), full_at, free_at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.full_at:
            with self.ballast.open('wb', buffering=0) as file:
                file.write(bytes(shutil.disk_usage(self.ballast.parent).free))
        elif runner.iter == self.free_at:
            self.ballast.unlink()


def test_a_disk_that_is_full_for_a_while(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work_dir = small_disk / 'run'
    fills = dict(type='FillHook', place=str(small_disk), full_at=2, free_at=7)
    train(config(work_dir, custom_hooks=[fills]))
    shown = capfd.readouterr()
    assert 'No space left on device' in shown.out and 'can be written again' in shown.out
    assert 'Traceback' not in shown.err and 'rror' not in shown.err, shown.err
    assert names(work_dir) == ['iter_8.pth', 'iter_8.pth.sha256']
    train(config(tmp_path / 'whole'))
    same_end(work_dir, tmp_path / 'whole')
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [row['step'] for row in rows if 'loss' in row]
    assert steps[0] == 1 and steps[-1] == 8


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has a file that is always full')
def test_logs_and_numbers_are_lost_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = train(config(tmp_path, steps=1))
    handler = logging.FileHandler('/dev/full')
    runner.logger.addHandler(handler)
    log_into(runner.logger)
    capfd.readouterr()
    runner.logger.info('x' * 100_000)
    (backend,) = runner.visualizer._vis_backends.values()
    backend._dump(dict(loss=1.0), '/dev/full', 'json')
    assert capfd.readouterr().err == ''
    runner.logger.removeHandler(handler)


def test_half_a_row_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text('{"step": 1}\n')

    def dump(row: dict[str, Any], path: str) -> None:
        with open(path, 'a') as file:
            file.write('{"st')
            file.flush()
            raise OSError(errno.ENOSPC, 'No space left on device')

    disk_space._dump(dump, dict(step=2), str(path))
    assert path.read_text() == '{"step": 1}\n'


def free(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(disk_space.shutil, 'disk_usage', lambda path: SimpleNamespace(free=number))


def test_room_is_looked_for_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    size = 4 * (3 * (4 * 8 + 8 + 8 + 8 + 8 + 1) + 2 * 8) + 8  # AdamW's moments; running statistics and their count
    free(monkeypatch, size - 1)
    with pytest.raises(UserError, match='0 MiB are free') as caught:
        train(config(tmp_path / 'none'))
    assert len(str(caught.value).splitlines()) == 2 and names(tmp_path / 'none') == []
    for number, is_enough in ((3 * size - 1, False), (3 * size, True)):  # two are kept, one is being written
        free(monkeypatch, number)
        capfd.readouterr()
        train(config(tmp_path / str(number), keep=2))
        assert ('the run keeps 3' in capfd.readouterr().out) is not is_enough


SETTINGS: dict[str, dict[str, Any]] = {
    'AdamW': {},
    'averaged': dict(custom_hooks=[EMA]),
    'SGD': dict(optim_wrapper=dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1))),
    'momentum': dict(optim_wrapper=dict(optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9))),
}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from tensors(item)


@pytest.mark.parametrize('name', SETTINGS)
def test_the_size_of_a_checkpoint_is_known_beforehand(name: str, tmp_path: Path) -> None:
    runner = train(config(tmp_path, steps=2, **SETTINGS[name]))
    content = torch.load(tmp_path / 'iter_2.pth', weights_only=True)
    parts = [content[key] for key in ('state_dict', 'ema_state_dict', 'optimizer') if key in content]
    found = sum(tensor.nbytes for tensor in tensors(parts))
    counters = 4 * sum(tensor.ndim == 0 for tensor in tensors(content['optimizer'])) + 8 * (name == 'averaged')
    assert disk_space.checkpoint_bytes(runner) == found - counters


def test_a_file_that_is_still_being_written_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk the next save begins before the file that it replaces is in its place."""
    flush = os.fsync
    monkeypatch.setattr('dense.engine.atomic.os.fsync', lambda number: (time.sleep(0.3), flush(number)))
    train(config(tmp_path, steps=6))
    assert names(tmp_path) == ['iter_6.pth', 'iter_6.pth.sha256']
