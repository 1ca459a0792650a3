"""How a process says why it failed. Of several processes, only the first one's two lines reach the screen.

The launcher of ``--gpus`` reads what each process leaves in a file of its own, and shows the first cause. Under a
user's own ``torchrun`` nobody does, so the processes agree, through the store of that launcher, who writes.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

FOLDER = 'DENSE_FAILURES'  # environment variable: where our launcher looks for what a process left
TORCHRUN_FILE = 'TORCHELASTIC_ERROR_FILE'  # torchrun's, set if it was asked to keep logs
KEEPS_STORE = 'TORCHELASTIC_USE_AGENT_STORE'  # torchrun's: its own process keeps the store of the run
STORE_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Failure:
    """Why a process failed.

    Attributes:
        cause: One line.
        remedy: One line.
        follows: Whether it only follows from the failure of another process.
        checkpoint: Where ``--resume`` would continue, if it is known.
        shown: Whether the process itself has written to the screen.
        time: When it happened, in seconds.
    """

    cause: str
    remedy: str
    follows: bool = False
    checkpoint: str | None = None
    shown: bool = False
    time: float = field(default_factory=time.time)

    def lines(self, rank: int | None = None) -> str:
        """Return what a person reads: the cause and the remedy, one line each.

        Args:
            rank: Number of the process, if there are several.
        """
        place = '' if rank is None else f'rank {rank}: '
        again = f'; then continue from {self.checkpoint} with --resume' if self.checkpoint else ''
        return f'error: {place}{self.cause}\nremedy: {self.remedy}{again}\n'


def own_rank() -> int | None:
    """Return the number of this process among several, or None if it is the only one."""
    several = int(os.environ.get('WORLD_SIZE', '1')) > 1
    return int(os.environ['RANK']) if several and 'RANK' in os.environ else None


def report(failure: Failure) -> None:
    """Leave the failure for the launcher, and show it unless the launcher or another process does.

    Args:
        failure: Of this process.
    """
    write_record(failure)
    rank = own_rank()
    if FOLDER not in os.environ and (rank is None or _is_first()):
        sys.stderr.write(failure.lines(rank))


def write_record(failure: Failure) -> None:
    """Leave a failure where launchers look for it.

    Args:
        failure: Of this process.
    """
    if os.environ.get(FOLDER):
        record_file(os.environ[FOLDER], os.getpid()).write_text(json.dumps(asdict(failure)))
    if os.environ.get(TORCHRUN_FILE):
        # What torchrun shows as the traceback: the lines that a person can use.
        extra = dict(py_callstack=failure.lines(), timestamp=str(int(failure.time)))
        message = dict(message=failure.cause, extraInfo=extra)
        Path(os.environ[TORCHRUN_FILE]).write_text(json.dumps(dict(message=message)))


def record_file(folder: str | Path, pid: int) -> Path:
    """Return where a process leaves its failure: no two processes share a file.

    Args:
        folder: Of the launcher.
        pid: Number of the process.
    """
    return Path(folder) / f'{pid}.json'


def read_record(path: Path) -> Failure | None:
    """Return the failure that a process left, or None if it left none that can be read.

    Args:
        path: From :func:`record_file`.
    """
    try:
        return Failure(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # none, or half-written by a killed process
        return None


def _is_first() -> bool:
    """Tell whether no other process of this start of the run has failed before; True if nobody can be asked."""
    if os.environ.get(KEEPS_STORE) != 'True':
        return True
    from torch.distributed import TCPStore

    address, port = os.environ['MASTER_ADDR'], os.environ['MASTER_PORT']
    start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    try:
        store = TCPStore(address, int(port), is_master=False, timeout=STORE_PATIENCE)
        return int(store.add(f'dense/failures/{start}', 1)) == 1
    except (RuntimeError, ValueError):  # it has gone with the process that kept it
        return True
