"""Does a killed run leave no processes and no half-written files, and touch nothing that belongs to others?"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from processes import children, is_alive, wait_for
from toy_run import toy_config

from dense.engine import atomic
from dense.engine.atomic import AtomicBackend, sweep
from dense.engine.launch import train
from dense.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
HAS_PROC = bool(list(Path('/proc/self/task').glob('*/children')))

# A sample too large for a pipe, as polygons and masks of a crowded image are.
RUN = """
import os, sys
sys.path[:0] = {path!r}
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS, HOOKS
from toy_run import ToyNumbers, toy_config
from dense.engine.launch import train
from dense.errors import UserError

@DATASETS.register_module()
class Large(ToyNumbers):
    def __getitem__(self, index):
        return dict(super().__getitem__(index), masks=np.zeros(1 << 20, np.uint8))

@FUNCTIONS.register_module()
def own_start(worker_id):
    pass

@HOOKS.register_module()
class Wait(Hook):
    def after_val_iter(self, *args, **kwargs):
        import time
        print('waiting', flush=True)
        open({mark!r}, 'w').close()
        time.sleep(600)

import toy_run
forward = toy_run.ToyNet.forward
toy_run.ToyNet.forward = lambda self, x, y, masks=None, mode='tensor': forward(self, x, y, mode)
loader = dict(num_workers=2, batch_size=2, persistent_workers=True, dataset=dict(type='Large'))
own = dict(loader, worker_init_fn=dict(type='own_start'))
train(toy_config({work_dir!r}, steps=2, train_dataloader=loader, val_dataloader=own, custom_hooks=[dict(type='Wait')]))
"""


@contextlib.contextmanager
def started(code: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not HAS_PROC, reason='looks at /proc')
def test_loading_processes_die_with_the_run(tmp_path: Path) -> None:
    """Killed in its validation, when the processes of both loaders wait for somebody to take what they loaded."""
    mark = tmp_path / 'mark'
    path = [str(PROJECT), str(PROJECT / 'tests' / 'shared')]
    code = RUN.format(path=path, mark=str(mark), work_dir=str(tmp_path / 'run'))
    with started(code) as process:
        assert wait_for(lambda: mark.exists() or process.poll() is not None, 90)
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        below = children(process.pid)
        time.sleep(1)  # the pipes fill
        assert len(below) >= 4
        os.kill(process.pid, signal.SIGKILL)
        try:
            assert wait_for(lambda: not any(map(is_alive, below)), 12), 'loading processes stay for good'
        finally:
            for pid in filter(is_alive, below):
                os.kill(pid, signal.SIGKILL)


# The module alone: importing the package takes seconds.
WRITE = """
import importlib.util, time
from collections.abc import Callable
from pathlib import Path
spec = importlib.util.spec_from_file_location('atomic', {module!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
def wait(*args):
    Path({mark!r}).touch()
    time.sleep(600)
atomic.os.fsync = wait
atomic.AtomicBackend().put(b'half of it', {path!r})
"""


def test_half_written_files_go_when_their_writer_is_dead(tmp_path: Path) -> None:
    run, mark = tmp_path / 'run', tmp_path / 'mark'
    run.mkdir()
    others = [run / name for name in ('notes.tmp', 'iter_1.pth.tmp', 'iter_1.pth.elsewhere-77.tmp', 'iter_1.pth')]
    for path in others:
        path.write_text('mine')
    code = WRITE.format(module=atomic.__file__, mark=str(mark), path=str(run / 'iter_2.pth'))
    with started(code) as process:
        assert wait_for(mark.exists, 60)
        (half,) = set(run.iterdir()) - set(others)
        assert sweep(run) == [], 'it is being written'
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert half.exists()
        # Another process may have the dead one's number by now.
        reused = half.with_name(half.name.replace(str(process.pid), str(os.getpid())))
        half.rename(reused)
        assert sweep(run) == [reused]
    assert sorted(run.iterdir()) == sorted(others)


def test_a_run_begins_by_sweeping_its_work_dir(tmp_path: Path) -> None:
    backend = AtomicBackend()
    backend.put(b'', tmp_path / 'other')
    left = tmp_path / f'iter_9.pth.{scratch_host(tmp_path)}-999999.tmp'
    left.write_bytes(b'half')
    train(toy_config(tmp_path, steps=1))
    assert not left.exists() and (tmp_path / 'iter_1.pth').is_file()


def scratch_host(folder: Path) -> str:
    """What stands for this machine in the names of scratch files."""
    seen: list[str] = []
    fsync = os.fsync
    try:
        os.fsync = lambda descriptor: seen.extend(path.name for path in folder.glob('probe.*.tmp'))
        AtomicBackend().put(b'', folder / 'probe')
    finally:
        os.fsync = fsync
    return seen[0].removeprefix('probe.').rpartition('-')[0]


def test_a_file_that_is_swept_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def late(file, operation):
        if not calls:
            calls.append(Path(file.name))
            os.unlink(file.name)
        lock(file, operation)

    monkeypatch.setattr(fcntl, 'flock', late)
    AtomicBackend().put(b'whole', tmp_path / 'iter_1.pth')
    assert calls and [path.name for path in tmp_path.iterdir()] == ['iter_1.pth']
    assert (tmp_path / 'iter_1.pth').read_bytes() == b'whole'


def test_a_run_removes_its_own_files_only(tmp_path: Path) -> None:
    """A run that fails after it said which file to remove must not have it removed by the next run."""

    def config(name: str, **more: object) -> Config:
        cfg = toy_config(tmp_path / name, steps=4, **more)
        cfg.default_hooks.checkpoint.max_keep_ckpts = 1
        return cfg

    failing = config('first')
    with pytest.MonkeyPatch.context() as patch:
        write = AtomicBackend.write

        def fail(self: AtomicBackend, filepath: str, fill: Callable) -> str:
            if 'iter_3' in str(filepath) or 'iter_4' in str(filepath):
                raise OSError(28, 'No space left on device')
            return write(self, filepath, fill)

        patch.setattr(AtomicBackend, 'write', fail)
        with pytest.raises(UserError, match='No space'):
            train(failing)
    assert (tmp_path / 'first' / 'iter_2.pth').is_file()
    train(config('second'))
    assert (tmp_path / 'first' / 'iter_2.pth').is_file(), 'the only good checkpoint of the first run'
    assert [path.name for path in (tmp_path / 'second').glob('*.pth')] == ['iter_4.pth']
