"""Shows a person a few lines and a progress bar during a run. Output of libraries goes to the log file."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

from mmengine.dist import is_main_process
from rich.console import Console
from rich.progress import Progress


class _LogWriter(io.TextIOBase):
    """A stand-in for ``sys.stdout`` that logs whole lines; lines written before a log exists are kept until it does."""

    def __init__(self) -> None:
        self.logger: logging.Logger | None = None
        self._waiting: list[str] = []
        self._partial = ''

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split('\n')
        self._waiting += [line for line in lines if line.strip()]
        if self.logger is not None:
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                self.logger.info(line)
        return len(text)


class _Screen:
    """The one screen of this process."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self.stream: TextIO | None = None
        self.writer: _LogWriter | None = None
        self.progress: Progress | None = None


_screen = _Screen()


def console() -> Console:
    """Return the console on the real standard output, shared by notices and progress bars."""
    stream = _screen.stream or sys.stdout
    if _screen.console is None or _screen.console.file is not stream:
        _screen.console = Console(file=stream, highlight=False, soft_wrap=True)
    return _screen.console


def notice(text: str) -> None:
    """Show one line to the user, above a running progress bar, and log it. Only the main process shows it."""
    if is_main_process():
        console().print(text, markup=False)
    if _screen.writer is not None and _screen.writer.logger is not None:
        _screen.writer.logger.info(text)


def start_progress(progress: Progress) -> None:
    """Show a progress bar until :func:`stop_progress`; an earlier one is removed."""
    stop_progress()
    progress.start()
    _screen.progress = progress


def stop_progress() -> None:
    """Remove the progress bar, if there is one."""
    if _screen.progress is not None:
        _screen.progress.stop()
        _screen.progress = None


def log_into(logger: logging.Logger) -> None:
    """Make a library's logger write only to its file, and send what libraries print or warn about there as well."""
    for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(handler)
    for writer in logger.handlers:
        writer.handleError = _lose_line  # type: ignore[method-assign]
    if _screen.writer is not None:
        _screen.writer.logger = logger
        _screen.writer.write('')


def _lose_line(record: logging.LogRecord) -> None:
    # A full disk is reported where it matters; logging would write a traceback to the screen for every line.
    if not isinstance(sys.exc_info()[1], OSError):
        logging.Handler().handleError(record)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries print and warn about off the screen while the body runs."""
    if _screen.writer is not None:  # already quiet
        yield
        return
    _screen.stream, _screen.writer = sys.stdout, _LogWriter()
    writer = _screen.writer

    def log_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        writer.write(f'{category.__name__} ({filename}:{lineno}): {message}\n')

    try:
        with redirect_stdout(writer), warnings.catch_warnings():
            warnings.showwarning = log_warning  # type: ignore[assignment]
            yield
    finally:
        stop_progress()
        _screen.stream, _screen.writer = None, None
