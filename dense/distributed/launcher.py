"""Starts the processes of a run by PyTorch's elastic agent, the one inside torchrun, and says why one failed.

What differs from torchrun is what a person sees: two lines with the first cause in place of the agent's traceback.
Processes that cannot end by themselves, such as one that was stopped, are ended in seconds.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from dense.console.failure import FOLDER, read_record, record_file
from dense.cpu.cores import usable_cores
from dense.distributed.children import end_all, exit_status, shell_status, wait_for
from dense.distributed.first_failure import ECHO, Failed, find_failed, first_failure
from dense.errors import STOPPED, UserError

SIGNALS = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1')  # passed on to the processes, which may save first
PATIENCE = 600  # seconds that other machines have to arrive, and that a run has to save after a signal
FREE_PORT = 'localhost:0'


def launch(
    command: Sequence[str],
    processes: int,
    *,
    nodes: int = 1,
    endpoint: str = FREE_PORT,
    run_id: str | None = None,
    max_restarts: int = 0,
) -> int:
    """Run a command in several processes of this machine, which find each other and those of other machines.

    Args:
        command: Program and its arguments.
        processes: How many here.
        nodes: Number of machines, on each of which this is called.
        endpoint: ``HOST:PORT`` of the machine where the machines meet.
        run_id: What tells this run from others that meet there; the same on all machines.
        max_restarts: How often all processes are started again after one failed.

    Returns:
        Exit status: 0, or that of the process that failed first.

    Raises:
        UserError: The port is in use, or the other machines do not come.
    """
    _check_port(endpoint, nodes)
    settings = {
        'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS') or str(max(1, usable_cores() // processes)),
        'TORCHELASTIC_SIGNALS_TO_HANDLE': ','.join(SIGNALS),
    }
    with tempfile.TemporaryDirectory(prefix='dense-') as folder, _quiet_agent(), _environment(settings, folder):
        try:
            spec = _spec(command, processes, nodes, endpoint, run_id or str(uuid.uuid4()), max_restarts)
            return Agent(spec, folder).run_to_end()
        except RendezvousError as error:
            raise _not_met(endpoint, nodes) from error


class _RunStopped(Exception):
    """The processes end because they were asked to; the agent must not start them again."""


class Agent(LocalElasticAgent):
    """PyTorch's elastic agent; it also says why a process failed, and ends the others in seconds.

    Args:
        spec: What to start.
        folder: Where the processes leave their failures.

    Attributes:
        status: Exit status of the process that failed first; 0 if none has.
    """

    def __init__(self, spec: WorkerSpec, folder: str) -> None:
        super().__init__(spec, DefaultLogsSpecs(), shutdown_timeout=PATIENCE)
        self.status = 0
        self._folder = folder
        self._max_restarts = spec.max_restarts
        self._starts = 0

    def run_to_end(self) -> int:
        """Start the processes, wait for them, and return the exit status of the run."""
        try:
            self.run()
        except SignalException as error:
            return self.status or 128 + int(error.sigval)
        except _RunStopped:
            pass
        finally:
            end_all(self._pids())  # a second signal may have cut the orderly end short
        return self.status

    def _pids(self) -> list[int]:
        return [worker.id for worker in self._worker_group.workers if worker.id]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._starts += 1
        self.status = 0
        return super()._start_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = {worker.id: worker.global_rank for worker in worker_group.workers}
        statuses = {pid: exit_status(pid) for pid in ranks}
        if STOPPED in statuses.values():
            # The others are about to do the same; the main process may still be writing.
            self.status = STOPPED
            raise _RunStopped
        if any(statuses.values()) or any(self._has_said_why(pid) for pid in ranks):
            self._explain(find_failed(ranks, self._folder))
            # Not SIGTERM, at which they would try to finish a step that needs the process that failed.
            end_all(ranks, signal.SIGKILL)
        elif None in statuses.values():
            # The original would look once more, and be the first to see what happened in between.
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = PATIENCE) -> None:
        if self.status == STOPPED:
            wait_for(self._pids(), timeout)
        ended = end_all(self._pids(), death_sig, timeout)
        self.status = self.status or next((shell_status(status) for status in ended.values() if status), 0)
        super()._shutdown(death_sig, timeout)

    def _has_said_why(self, pid: int) -> bool:
        """Tell whether a process has failed, if not ended: that may take seconds."""
        failure = read_record(record_file(self._folder, pid))
        if failure is None or failure.shown:
            return False
        # What follows from another failure waits a moment for that one's own word.
        return not failure.follows or time.time() - failure.time > ECHO

    def _explain(self, failed: Sequence[Failed]) -> None:
        first, failure = first_failure(failed)
        self.status = first.shell_status
        several = self._worker_group.workers[0].world_size > 1
        if not failure.shown:
            sys.stderr.write(failure.lines(first.rank if several else None))
        if self._starts <= self._max_restarts:
            sys.stderr.write(f'all processes start again (restart {self._starts} of {self._max_restarts})\n')
        sys.stderr.flush()


def _spec(
    command: Sequence[str], processes: int, nodes: int, endpoint: str, run_id: str, max_restarts: int
) -> WorkerSpec:
    # Machines in one network know each other by name; a single one need not even know its own.
    address = 'localhost' if nodes == 1 else None
    where = RendezvousParameters(
        'c10d', endpoint, run_id, nodes, nodes, address, join_timeout=PATIENCE, read_timeout=60
    )
    return WorkerSpec(
        role='run',
        local_world_size=processes,
        rdzv_handler=get_rendezvous_handler(where),
        entrypoint=command[0],
        args=tuple(command[1:]),
        max_restarts=max_restarts,
        monitor_interval=0.1,
        local_addr=address,
    )


def _check_port(endpoint: str, nodes: int) -> None:
    host, _, port = endpoint.rpartition(':')
    if nodes > 1 or port == '0':  # of several machines, only one keeps the port; which, PyTorch finds out
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, OverflowError) as error:
            raise UserError(
                f'the processes cannot meet at {endpoint}: {getattr(error, "strerror", None) or error}',
                'unset MASTER_PORT, and a free port is found, or set MASTER_PORT to another one',
            ) from error


def _not_met(endpoint: str, nodes: int) -> UserError:
    return UserError(
        f'the {nodes} machines did not meet at {endpoint} within {PATIENCE} s, or another program uses its port',
        'start the same command on every machine; give MASTER_ADDR and MASTER_PORT (--rdzv-endpoint) of one of them',
    )


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's log off the screen unless it is asked for, and give the signals back afterwards."""
    before = logging.root.manager.disable
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    if 'LOGLEVEL' not in os.environ:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)


@contextmanager
def _environment(settings: Mapping[str, str], folder: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    os.environ[FOLDER] = folder
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
