"""Faults that happen to one process of a run at a chosen step, and runs in several processes to which they happen."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import PROJECT, toy_config


def _raise() -> None:
    raise ValueError('a fault that nobody expects')


def _fill_memory() -> None:
    raise MemoryError('cannot allocate 64 GiB')


def _fill_gpu() -> None:
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 64.00 GiB')


KINDS: dict[str, Callable[[], None]] = {
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'stop': lambda: os.kill(os.getpid(), signal.SIGSTOP),
    'raise': _raise,
    'memory': _fill_memory,
    'gpu memory': _fill_gpu,
}


@HOOKS.register_module()
class FailAt(Hook):
    """Let a fault happen to one process.

    Args:
        rank: The process.
        step: Counted from 1; the fault happens before it.
        kind: Key of :data:`KINDS`.
        start: The start of the run in which it happens; torchrun counts from 0.
    """

    def __init__(self, rank: int, step: int, kind: str, start: int = 0) -> None:
        self.place = (rank, step, start)
        self.kind = kind

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        start = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'))
        if (get_rank(), runner.iter + 1, start) == self.place:
            KINDS[self.kind]()


def fail_at(rank: int, step: int, kind: str, start: int = 0) -> dict[str, Any]:
    """Config of :class:`FailAt`."""
    return dict(type='FailAt', rank=rank, step=step, kind=kind, start=start)


def toy_file(work_dir: Path, *faults: dict[str, Any], timeout: float = 60, **changes: Any) -> Path:
    """Write the config of a toy run to a file.

    Args:
        work_dir: Its folder; the file lies next to it.
        *faults: From :func:`fail_at`.
        timeout: Seconds that a process waits for the others.
        **changes: See ``toy_config``.
    """
    imports = dict(imports=['toy_run', 'faults'], allow_failed_imports=False)
    cfg = toy_config(work_dir, custom_imports=imports, custom_hooks=list(faults), **changes)
    cfg.env_cfg = dict(dist_cfg=dict(timeout=timeout))
    path = work_dir.with_suffix('.py')
    path.write_text(cfg.pretty_text)
    return path


def environment(**changes: str) -> dict[str, str]:
    """Environment of a command that imports this folder, on the CPU."""
    path = os.pathsep.join([str(PROJECT), str(PROJECT / 'tests' / 'shared')])
    kept = {key: value for key, value in os.environ.items() if key not in ('MASTER_ADDR', 'MASTER_PORT')}
    return {**kept, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **changes}


def command(config: Path, *options: str, name: str = 'train') -> list[str]:
    """Command that trains."""
    return [sys.executable, str(PROJECT / 'tools' / f'{name}.py'), str(config), *options]


def run(config: Path, *options: str, seconds: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Train by the command, and return how it ended.

    Args:
        config: From :func:`toy_file`.
        *options: Of the command.
        seconds: The longest that it may take.
        **env: Environment variables.
    """
    return subprocess.run(
        command(config, *options), capture_output=True, text=True, timeout=seconds, env=environment(**env)
    )
