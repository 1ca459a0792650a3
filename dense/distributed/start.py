"""Reads what ``--gpus`` and its companions ask for, before anything is started."""

import os
import sys
from collections.abc import Sequence

import torch

from dense.cpu.device import accelerator
from dense.errors import UserError


def start(command: Sequence[str], gpus: int, *, nodes: int, endpoint: str | None, max_restarts: int) -> int:
    """Start a command in several processes, one for each GPU, or on the CPU where there is none.

    Args:
        command: Program and its arguments.
        gpus: Processes on this machine.
        nodes: Number of machines, on each of which the same command is started.
        endpoint: ``HOST:PORT`` where they meet; by default ``MASTER_ADDR`` and ``MASTER_PORT`` of the environment,
            and for one machine a free port.
        max_restarts: How often all processes are started again after one failed.

    Returns:
        Exit status of the run.

    Raises:
        UserError: This cannot be started here.
    """
    _check_numbers(gpus, nodes, max_restarts)
    _check_devices(gpus)
    from dense.distributed.launcher import launch

    where = _meeting_point(nodes, endpoint)
    run_id = os.environ.get('SLURM_JOB_ID', where) if nodes > 1 else None
    return launch(command, gpus, nodes=nodes, endpoint=where, run_id=run_id, max_restarts=max_restarts)


def _check_numbers(gpus: int, nodes: int, max_restarts: int) -> None:
    for name, value, least in (('--gpus', gpus, 1), ('--nnodes', nodes, 1), ('--max-restarts', max_restarts, 0)):
        if value < least:
            raise UserError(f'{name} {value} is too small', f'give at least {least}')


def _check_devices(gpus: int) -> None:
    kind = accelerator()
    if kind is None:
        if gpus > 1:
            sys.stdout.write(f'no GPU found: {gpus} processes on the CPU, connected by gloo\n')
            sys.stdout.flush()
        return
    found = torch.cuda.device_count() if kind == 'cuda' else torch.accelerator.device_count()
    if gpus > found:
        raise UserError(
            f'--gpus {gpus}, but this machine has {found} ({kind})',
            f'start at most {found} processes here; for more machines see docs/scaling.md',
        )


def _meeting_point(nodes: int, endpoint: str | None) -> str:
    from dense.distributed.launcher import FREE_PORT

    port = os.environ.get('MASTER_PORT')
    if endpoint is None and port is not None:
        endpoint = f'{os.environ.get("MASTER_ADDR", "localhost")}:{port}'
    if endpoint is None and nodes > 1:
        raise UserError(
            f'--nnodes {nodes}, but nothing says where the machines meet',
            'give --rdzv-endpoint HOST:PORT with the name of one of them and a free port there, the same on all',
        )
    host, sign, number = (endpoint or FREE_PORT).rpartition(':')
    if not (host and sign and number.isdigit() and int(number) < 2**16):
        raise UserError(f'{endpoint} is no HOST:PORT', 'correct --rdzv-endpoint, or MASTER_ADDR and MASTER_PORT')
    return f'{host}:{number}'
