"""Looks after the processes that this one started, without taking their exit status away from whoever waits for it."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

GRACE = 10.0  # seconds that a process gets to end by itself
POLL = 0.05


def exit_status(pid: int) -> int | None:
    """Return how a child ended: its status, or the negative number of the signal; None while it runs.

    Args:
        pid: Number of the child, which stays to be waited for.

    Raises:
        ChildProcessError: It has been waited for, or is no child.
    """
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def is_stopped(pid: int) -> bool:
    """Tell whether a child stands still because of SIGSTOP or Ctrl-Z.

    Args:
        pid: Number of the child.
    """
    # Asked for stopped ones alone, it would deny that an ended process, which nobody has waited for, is a child.
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


def is_child(pid: int) -> bool:
    """Tell whether a process is a child that nobody has waited for."""
    try:
        exit_status(pid)
    except ChildProcessError:
        return False
    return True


def shell_status(status: int) -> int:
    """Return an exit status as shells have it: 128 and the number of the signal that ended the process.

    Args:
        status: From :func:`exit_status`.
    """
    return status if status >= 0 else 128 - status


def wait_for(pids: Iterable[int], seconds: float) -> None:
    """Wait until children have ended, at most for some time.

    Args:
        pids: Numbers of the children; others are left out.
        seconds: The longest wait.
    """
    pids = [pid for pid in pids if is_child(pid)]
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(exit_status(pid) is None for pid in pids):
        time.sleep(POLL)


def end_all(pids: Iterable[int], sign: signal.Signals = signal.SIGTERM, grace: float | None = None) -> dict[int, int]:
    """End children and what they started; whoever does not follow the signal in time is killed.

    Args:
        pids: Numbers of the children, each the leader of its group of processes.
        sign: What they are told.
        grace: Seconds that they get; by default :data:`GRACE`.

    Returns:
        Number -> how it ended, see :func:`exit_status`.
    """
    pids = [pid for pid in pids if is_child(pid)]
    for pid in pids:
        # A process that stands still would follow the signal only later.
        _signal_group(pid, signal.SIGKILL if is_stopped(pid) else sign)
    wait_for(pids, GRACE if grace is None else grace)
    for pid in pids:
        _signal_group(pid, signal.SIGKILL)  # also what an ended process has left
    wait_for(pids, GRACE)  # one that the kernel holds cannot be ended; nobody should wait for it for ever
    return {pid: status for pid in pids if (status := exit_status(pid)) is not None}


def _signal_group(pid: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sign)
