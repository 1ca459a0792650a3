"""Does a run survive a hundred kills, and is every one of two hundred damaged files of each format refused?

Run by ``make test-breaking``, which takes minutes. The figures go to ``work_dirs/breaking.json`` and, by hand, to
``docs/reliability.md``.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import safetensors.torch
import torch
from figures import note
from onnx_files import sealed
from toy_run import NUM_SAMPLES, assert_equal, same_end, saved, toy_config

from backbones import checksums
from backbones.serialization import load_file
from dense.engine import atomic, resume
from dense.engine.launch import train
from dense.engine.resume import checkpoints
from dense.predict.exported import ExportedModel

pytestmark = [pytest.mark.breaking, pytest.mark.timeout(1800)]

SEED = 0
NUM_KILLS = 100
NUM_DAMAGED = 200
STEPS = 40


def end_itself(*args: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError('unreachable')


def kill_inside_a_write(moment: str, number: int) -> None:
    """Make this process kill itself inside a write.

    Args:
        moment: Between two pieces of a file, before it is flushed, before it is moved into place, or after that.
        number: How many such moments pass before.
    """
    owner: Any = atomic.HashingFile if moment == 'piece' else os
    name = dict(piece='write', flushed='fsync', moved='replace', named='replace')[moment]
    original, left = getattr(owner, name), [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            return original(*args, **kwargs)
        if moment == 'piece':
            file, data = args
            original(file, bytes(data)[: len(data) // 2])
            file.file.flush()
        elif moment == 'named':
            original(*args, **kwargs)
        end_itself()

    setattr(owner, name, counted)


def start(work_dir: Path, ready: Path, *, is_new: bool, breaks: tuple[str, int] | None) -> int:
    """Start a run in a process of its own: a copy of this one, which has imported everything and computed nothing."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(work_dir.with_suffix('.txt'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
        cfg = toy_config(work_dir, steps=STEPS, optim_wrapper=dict(accumulative_counts=3))
        cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=3)
        cfg.resume = not is_new
        if breaks is not None:
            kill_inside_a_write(*breaks)
        ready.touch()
        train(cfg)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_hundred_kills(tmp_path: Path) -> None:
    """Half of the kills strike inside a write, at a random piece or between the steps that make a file whole."""
    rng, ready = random.Random(SEED), tmp_path / 'ready'
    began = time.monotonic()
    assert outcome(start(tmp_path / 'whole', ready, is_new=True, breaks=None)) == 0
    length = time.monotonic() - began
    kills: Counter[str] = Counter()
    runs = 0
    while kills.total() < NUM_KILLS:
        work_dir = tmp_path / f'run-{runs}'
        status: int | None = None
        while status != 0:
            half = kills.total() < NUM_KILLS and kills['at random'] >= NUM_KILLS // 2
            inside = kills.total() < NUM_KILLS and (half or kills.total() % 2 == 0)
            moment = rng.choice(['piece', 'piece', 'flushed', 'moved', 'named'])
            number = rng.randrange(200 if moment == 'piece' else 9)
            ready.unlink(missing_ok=True)
            is_new = next(checkpoints(work_dir), None) is None
            pid = start(work_dir, ready, is_new=is_new, breaks=(moment, number) if inside else None)
            if kills.total() < NUM_KILLS and not inside:
                while not ready.exists():
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, length))
                os.kill(pid, signal.SIGKILL)
            status = outcome(pid)
            assert status in (0, -signal.SIGKILL), work_dir.with_suffix('.txt').read_text()[-3000:]
            if status:
                kills[moment if inside else 'at random'] += 1
        same_end(work_dir, tmp_path / 'whole')
        assert not list(work_dir.glob('*.tmp'))
        assert sorted(path.name for path in work_dir.glob('*.pth')) == [f'iter_{n}.pth' for n in (36, 38, 40)]
        runs += 1
    assert kills['at random'] == NUM_KILLS // 2
    note(kills=dict(kills), runs=runs)


def test_a_resumed_run_never_needs_the_half_written_file(tmp_path: Path) -> None:
    """The scratch file of a killed write is never among the checkpoints."""
    pid = start(tmp_path / 'run', tmp_path / 'ready', is_new=True, breaks=('piece', 400))
    assert outcome(pid) == -signal.SIGKILL
    (half,) = (tmp_path / 'run').glob('*.tmp')
    assert half.stat().st_size > 0 and half not in list(checkpoints(tmp_path / 'run'))
    content = resume._read(next(checkpoints(tmp_path / 'run')), False)
    assert content['meta']['iter'] > 0 and NUM_SAMPLES


# Damages: what a disk, a copy or a person does to a file.


def flip(content: bytearray, rng: np.random.Generator) -> None:
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))


def cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[rng.integers(len(content)) :]


def zero(content: bytearray, rng: np.random.Generator) -> None:
    """Set a block to zero in which something stood."""
    at = int(rng.choice(np.flatnonzero(np.frombuffer(bytes(content), np.uint8))))
    content[at : at + 512] = bytes(len(content[at : at + 512]))


def scramble(content: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(max(1, len(content) - 64)))
    content[at : at + 64] = bytes(255 - byte for byte in content[at : at + 64])


def append(content: bytearray, rng: np.random.Generator) -> None:
    content += rng.bytes(int(rng.integers(1, 600)))


DAMAGES = (flip, cut, zero, scramble, append)


def write_checkpoint(folder: Path) -> Path:
    """The last checkpoint of a run, with its hash."""
    pid = start(folder / 'run', folder / 'ready', is_new=True, breaks=None)
    assert outcome(pid) == 0
    return folder / 'run' / f'iter_{STEPS}.pth'


def write_checkpoint_without_hash(folder: Path) -> Path:
    path = write_checkpoint(folder)
    checksums.forget(path)
    return path


def write_legacy(folder: Path) -> Path:
    torch.save(dict(w=torch.arange(2000.0)), folder / 'w.pth', _use_new_zipfile_serialization=False)
    checksums.record(folder / 'w.pth')
    return folder / 'w.pth'


def write_safetensors(folder: Path) -> Path:
    safetensors.torch.save_file(dict(w=torch.arange(2000.0)), folder / 'w.safetensors')
    checksums.record(folder / 'w.safetensors')
    return folder / 'w.safetensors'


def write_onnx(folder: Path) -> Path:
    return sealed(folder / 'm.onnx')


FORMATS: dict[str, Callable[[Path], Path]] = {
    '.pth of a run': write_checkpoint,
    '.pth without its hash': write_checkpoint_without_hash,
    'legacy .pth with a hash': write_legacy,
    '.safetensors with a hash': write_safetensors,
    'exported .onnx': write_onnx,
}


@pytest.mark.parametrize('name', FORMATS)
def test_two_hundred_damaged_files(name: str, tmp_path: Path) -> None:
    """Without a hash, the checksums of a .pth's parts do not cover the bytes between them, which nobody reads."""
    path = FORMATS[name](tmp_path)
    read: Callable[[Path], Any] = ExportedModel if path.suffix == '.onnx' else load_file
    sound = path.read_bytes()
    expected = saved(path) if 'run' in str(path) else None
    read(path)
    rng, refused = np.random.default_rng(SEED), 0
    for trial in range(NUM_DAMAGED):
        content = bytearray(sound)
        DAMAGES[trial % len(DAMAGES)](content, rng)
        assert content != sound
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            assert len(str(error).splitlines()) == 2
            refused += 1
            continue
        assert expected is not None
        assert_equal(saved(path), expected)
    note(**{name: f'{refused} of {NUM_DAMAGED} refused'})
    assert refused == NUM_DAMAGED or name == '.pth without its hash'
