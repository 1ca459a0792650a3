"""Builds data loaders with settings that fit together and loading processes that end with their run."""

import functools
import inspect
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from dense.data.loading import limit_threads
from dense.distributed.parent import end_with_parent

LOADER_KEYS = {name for name in inspect.signature(DataLoader.__init__).parameters if name != 'self'}
_ONLY_WITH_PROCESSES = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context', 'timeout')


def build_loader(config: Any, **kwargs: Any) -> DataLoader:
    """Build a loader as MMEngine does.

    Args:
        config: The loader, or its config. Arguments that only loading processes need are left out if there are none.
        **kwargs: Other arguments of ``Runner.build_dataloader``.
    """
    if not isinstance(config, DataLoader) and not config.get('num_workers', 0):
        config = _without_processes(config)
    loader = Runner.build_dataloader(config, **kwargs)
    if loader.num_workers > 0 and not isinstance(config, DataLoader):
        loader.worker_init_fn = functools.partial(start_process, loader.worker_init_fn)
    return loader


def _without_processes(config: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in _ONLY_WITH_PROCESSES}
    left_out = [f'{key}={config[key]!r}' for key in config if key not in kept and config[key]]
    if left_out:
        print_log(f'num_workers=0 loads in this process: {", ".join(left_out)} left out', 'current', logging.INFO)
    return kept


def start_process(then: Callable[[int], None] | None, worker_id: int) -> None:
    """Set up a loading process: one thread for computing, and another that ends the process with its parent.

    PyTorch checks only between two batches whether the parent is alive, and after its death still waits until the pipe
    has taken every batch. A process that writes into a full pipe that is never read never ends.

    Signals that ask the run to stop often reach all its processes. This one goes on: the run may need more batches
    before it stops.

    Args:
        then: What the config itself runs at the start.
        worker_id: Number of the process in its loader.
    """
    if hasattr(signal, 'sigtimedwait'):
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # for the threads that start from here, too
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with_parent(parent.pid, parent.is_alive, _is_ended_by)
    limit_threads(worker_id)
    if then is not None:
        then(worker_id)


def _is_ended_by(parent: int, seconds: float) -> bool:
    """Wait for some time; return whether the parent asked this process to end meanwhile."""
    if not hasattr(signal, 'sigtimedwait'):  # not Linux
        time.sleep(seconds)
        return False
    found = signal.sigtimedwait([signal.SIGTERM], seconds)
    return found is not None and found.si_pid == parent
