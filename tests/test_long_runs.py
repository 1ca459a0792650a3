"""Does a run of thousands of steps keep its memory and its files, and does a killed one leave no shared memory?"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import toy_config

from dense.engine.launch import train

PROJECT = Path(__file__).resolve().parent.parent
SHARED = Path('/dev/shm')
MIB = 2**20

pytestmark = pytest.mark.slow


@HOOKS.register_module(force=True)
class Watch(Hook):
    """Notes what the run uses every 200 steps, its loading processes included."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if (runner.iter + 1) % 200 == 0:
            own = psutil.Process()
            everybody = [own, *own.children(recursive=True)]
            resident = own.memory_info().rss
            self.seen.append((resident, own.num_fds(), len(everybody)))


@pytest.mark.parametrize('persistent', [False, True])
@pytest.mark.skipif(not SHARED.is_dir(), reason='counts the files of a process, as Linux does')
def test_memory_and_files_stay_flat_over_2000_steps(tmp_path: Path, persistent: bool) -> None:
    """With a validation, and new loading processes for it, every 100 steps, and a checkpoint every 200."""
    loader = dict(num_workers=2, persistent_workers=persistent)
    cfg = toy_config(tmp_path, steps=2000, train_dataloader=loader, val_dataloader=loader)
    cfg.train_cfg.val_interval = 100
    cfg.default_hooks.checkpoint.update(interval=200, max_keep_ckpts=2)
    cfg.custom_hooks = [dict(type='Watch')]
    runner = train(cfg)
    seen = next(hook for hook in runner.hooks if isinstance(hook, Watch)).seen
    assert len(seen) == 10
    resident, files, processes = zip(*seen, strict=True)
    print(f'resident {[round(size / MIB) for size in resident]} MiB, files {files}, processes {processes}')
    # Of 1,600 steps; the log of each keeps a few numbers.
    assert resident[-1] - resident[1] < 24 * MIB, [size // MIB for size in resident]
    assert max(files[1:]) - files[1] <= 2, files
    assert len(set(processes)) <= 2, processes


RUN = """
import sys
sys.path[:0] = {path!r}
import torch
from mmengine.registry import DATASETS
import toy_run
from toy_run import ToyNumbers, toy_config
from dense.engine.launch import train

@DATASETS.register_module()
class Large(ToyNumbers):
    def __getitem__(self, index):
        return dict(super().__getitem__(index), more=torch.zeros(1 << 18))  # tensors travel in shared memory

forward = toy_run.ToyNet.forward
toy_run.ToyNet.forward = lambda self, x, y, more=None, mode='tensor': forward(self, x, y, mode)
loader = dict(num_workers=2, batch_size=2, dataset=dict(type='Large'))
train(toy_config({work_dir!r}, steps=100000, train_dataloader=loader, val_dataloader=dict(loader)))
"""


def shared_files() -> set[str]:
    return set(os.listdir(SHARED))


@pytest.mark.skipif(not SHARED.is_dir(), reason='looks at shared memory, as Linux shows it')
def test_kills_leave_nothing_in_shared_memory(tmp_path: Path) -> None:
    chance = random.Random(0)
    code = RUN.format(path=[str(PROJECT), str(PROJECT / 'tests' / 'shared')], work_dir=str(tmp_path / 'run'))
    before, killed = shared_files(), set()
    for _ in range(5):
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            log = tmp_path / 'run' / 'last_checkpoint'
            log.unlink(missing_ok=True)
            end = time.monotonic() + 120
            while not log.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert process.poll() is None and log.exists()
            time.sleep(chance.uniform(0, 1.5))
            tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert len(tree) >= 3
        killed |= {str(pid) for pid in tree}
        end = time.monotonic() + 15
        while any(map(psutil.pid_exists, tree)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(psutil.pid_exists, tree)), 'processes are left'
    # Other programs of this machine use shared memory too; PyTorch's names hold the number of the process.
    left = [name for name in shared_files() - before if killed & set(name.replace('-', '_').split('_'))]
    assert left == []
