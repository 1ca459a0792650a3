"""Connects the processes of a run with each other, with a time-out for every wait."""

import os
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import init_dist
from torch import distributed

from dense.console.failure import KEEPS_STORE
from dense.cpu.device import run_device
from dense.distributed.parent import end_with_parent
from dense.errors import UserError

WITHOUT_NETWORK = ('cpu', 'mps')  # devices whose processes communicate through Gloo
DEFAULT_TIMEOUT = 1800  # seconds; the main process alone may evaluate or write a large checkpoint for minutes
TIMEOUT = 'env_cfg.dist_cfg.timeout'


def join_processes(cfg: Config) -> None:
    """Connect the processes of a distributed run, unless there is one process or they are connected.

    Args:
        cfg: Config of a run. ``launcher`` says what started the processes; only ``'pytorch'`` works without GPUs.
            ``env_cfg.dist_cfg`` holds the backend for GPUs and ``timeout`` in seconds, which is set if it is absent.

    Raises:
        UserError: The time-out is no time, or there are more processes than devices.
    """
    settings = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
    settings['timeout'] = checked_timeout(settings.get('timeout', DEFAULT_TIMEOUT))
    if cfg.launcher == 'none' or distributed.is_initialized():
        return
    if distributed.is_torchelastic_launched():
        end_with_parent()  # torchrun's own agent, if it is killed, leaves its processes running
    device = run_device()
    # For devices other than these, MMEngine names the number of the process itself.
    knows_where = cfg.launcher == 'pytorch' and device in ('cuda', *WITHOUT_NETWORK)
    where = _meeting_of_this_start(settings['timeout']) if knows_where else {}
    if device not in WITHOUT_NETWORK:
        _check_own_device()
        init_dist(cfg.launcher, **settings, **where)
    elif cfg.launcher == 'pytorch':
        distributed.init_process_group('gloo', timeout=timedelta(seconds=settings['timeout']), **where)


def _meeting_of_this_start(timeout: float) -> dict[str, Any]:
    """Return where the processes meet, if torchrun's agent keeps their store.

    The agent keeps one store for all starts of a run. Without a part of its own, a process that was started again
    would find, and wait for, the addresses of those that have ended.
    """
    if os.environ.get(KEEPS_STORE) != 'True':
        return {}
    size = int(os.environ['WORLD_SIZE'])
    store = distributed.TCPStore(
        os.environ['MASTER_ADDR'],
        int(os.environ['MASTER_PORT']),
        size,
        is_master=False,
        timeout=timedelta(seconds=timeout),
    )
    part = f'dense/start/{os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")}'
    return dict(store=distributed.PrefixStore(part, store), rank=int(os.environ['RANK']), world_size=size)


def checked_timeout(value: Any) -> float:
    """Return a time-out in seconds.

    Args:
        value: From a config.

    Raises:
        UserError: It is not a positive number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float('inf'):
        raise UserError(f'{TIMEOUT} is {value!r}', f'give seconds, for example {TIMEOUT}={DEFAULT_TIMEOUT}')
    return value


def leave_processes() -> None:
    """Disconnect at the end of a run, so that no process waits for another at its exit."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _check_own_device() -> None:
    place, devices = int(os.environ.get('LOCAL_RANK', '0')), torch.accelerator.device_count()
    if place >= devices:
        raise UserError(
            f'process {place + 1} of this machine has no device of its own: there are {devices}',
            f'start at most {devices} processes here: --gpus {devices}, or torchrun --nproc-per-node {devices}',
        )
