"""Chooses, among processes that ended, the one whose failure made the others fail."""

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dense.console.failure import Failure, read_record, record_file
from dense.distributed.children import exit_status, is_stopped, shell_status

STANDS_STILL, USER_ERROR = 1, 2  # exit statuses
ECHO = 3.0  # seconds in which the others, who lose the connection, can say where the run would continue
SIGNAL_REMEDIES: dict[int, str] = {
    signal.SIGKILL: 'if nobody killed it, the machine had no memory left (see dmesg): reduce '
    'train_dataloader.num_workers or batch_size',
    signal.SIGABRT: 'its own output is above; with NCCL this is how a process ends that waited longer than '
    'env_cfg.dist_cfg.timeout',
}


@dataclass(frozen=True)
class Failed:
    """A process that has failed, is about to end, or stands still.

    Attributes:
        rank: Its number in the run.
        pid: Its number on this machine.
        status: Exit status, or the negative number of the signal that ended it; None if it has not ended.
        failure: What it left about itself, if anything.
    """

    rank: int
    pid: int
    status: int | None
    failure: Failure | None = None

    @property
    def weight(self) -> tuple[int, float]:
        """The first cause has the smallest: it is no consequence of another failure, and happened first."""
        if self.failure is None:
            return (1, 0.0) if self.status is None else (0, float('inf'))
        return (2 if self.failure.follows else 0, self.failure.time)

    @property
    def shell_status(self) -> int:
        """Exit status for the whole run."""
        if self.status is None:  # it has to be ended
            return USER_ERROR if self.failure else STANDS_STILL
        return shell_status(self.status)


def find_failed(ranks: Mapping[int, int], folder: str) -> list[Failed]:
    """Return the processes that failed or stand still.

    If none has left word, as after a SIGKILL, this waits a moment for those who notice it.

    Args:
        ranks: Number on this machine -> number in the run, of all child processes.
        folder: Where the processes leave their failures.
    """
    end = time.monotonic() + ECHO
    while True:
        seen = [
            Failed(rank, pid, exit_status(pid), read_record(record_file(folder, pid))) for pid, rank in ranks.items()
        ]
        failed = [one for one in seen if one.status or one.failure or (one.status is None and is_stopped(one.pid))]
        if any(one.failure for one in failed) or len(failed) == len(seen) or time.monotonic() > end:
            return failed
        time.sleep(0.05)


def first_failure(failed: Sequence[Failed]) -> tuple[Failed, Failure]:
    """Return the process that failed first, and why.

    Args:
        failed: From :func:`find_failed`; at least one.
    """
    first = min(failed, key=lambda one: one.weight)
    known = [one.failure.checkpoint for one in failed if one.failure is not None and one.failure.checkpoint]
    return first, first.failure or _without_record(first, known[0] if known else None)


def _without_record(process: Failed, checkpoint: str | None) -> Failure:
    who = f'process {process.pid}'
    hint = '' if checkpoint else '; if a checkpoint was saved, --resume continues from it'
    if process.status is None:
        cause, remedy = f'{who} stands still: a signal stopped it', 'start again, and do not stop single processes'
    elif process.status < 0:
        cause = f'{who} was killed by {_signal_name(-process.status)}'
        remedy = SIGNAL_REMEDIES.get(-process.status, 'its own output is above')
    else:
        cause, remedy = f'{who} ended with status {process.status}', 'its own output is above'
    return Failure(cause, remedy + hint, checkpoint=checkpoint)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f'signal {number}'
