"""Lets a process end with the one that started it, however that one ended."""

import os
import threading
import time
from collections.abc import Callable

PARENT_CHECK_INTERVAL = 1.0  # seconds


def end_with_parent(
    pid: int | None = None,
    is_alive: Callable[[], bool] = lambda: True,
    is_told_to_end: Callable[[int, float], bool] | None = None,
) -> None:
    """Start a thread that ends this process when its parent has ended.

    A parent that is killed can tell nobody. Without the thread, loading processes wait for somebody to read their pipe,
    and the processes of a distributed run for each other.

    Args:
        pid: Number of the parent, known from before this process was started, so that a parent that died in between is
            noticed too; by default the present one.
        is_alive: Another way to ask. On Windows the number of the parent stays the same when it has ended.
        is_told_to_end: Waits for the parent with this number for so many seconds, and returns whether it asked this
            process to end.
    """
    known = os.getppid() if pid is None else pid
    threading.Thread(
        target=_watch, args=(known, is_alive, is_told_to_end or _wait), name='end with parent', daemon=True
    ).start()


def _watch(pid: int, is_alive: Callable[[], bool], is_told_to_end: Callable[[int, float], bool]) -> None:
    while is_alive() and (os.name != 'posix' or os.getppid() == pid):
        if is_told_to_end(pid, PARENT_CHECK_INTERVAL):
            os._exit(0)  # PyTorch takes any other status of a loading process for an error, and says so
    os._exit(1)


def _wait(pid: int, seconds: float) -> bool:
    time.sleep(seconds)
    return False
