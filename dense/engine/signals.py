"""Remembers the signals that ask a run to stop, so that it can finish its step and save."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ('SIGTERM', 'SIGUSR1', 'SIGINT')  # Windows lacks the second
ECHO = 1.0  # seconds in which a signal that a launcher forwards may arrive a second time


class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signal: Number of the signal; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._echoes = False
        self._before: dict[int, Any] = {}

    def listen(self, *, echoes: bool) -> None:
        """Remember the first signal from now on; the second ends the process at once.

        Before this, signals end the process as usual: it has nothing to lose.

        Args:
            echoes: A launcher may forward a signal that this process also gets itself, as from a terminal or from
                Slurm: the same signal within a second counts once.
        """
        self._echoes = echoes
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread only
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            # An ignored signal stays ignored, as that of Ctrl-C is for a job in the background of a shell script.
            if number not in self._before and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Handle signals as before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal == 0:
            self.signal, self._since = number, now
            # Not through the screen's own writer, which may be in the middle of a line.
            again = ' (once more to leave at once)' if number == signal.SIGINT else ''
            os.write(2, f'\n{name_of(number)}: finishing the step and saving{again}\n'.encode())
            if not self._echoes:
                self._arm(number)
        elif not self._echoes or number != self.signal or now - self._since > ECHO:
            self._arm(number)
            signal.raise_signal(number)

    def _arm(self, number: int) -> None:
        """Let the system itself handle the next signals: that works even while the process hangs outside Python."""
        for other in self._before:
            # Ctrl-C leaves the terminal in order.
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)


def name_of(number: int) -> str:
    """Return a signal's name as a user knows it.

    Args:
        number: The signal.
    """
    return 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Give a request that does not listen yet, and handle signals as before at the end."""
    request = StopRequest()
    try:
        yield request
    finally:
        request.restore()
