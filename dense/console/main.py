"""Runs the commands in ``tools/``: two lines for an error, and an exit status."""

import contextlib
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from dense.console.explain_error import explain, is_consequence, last_line
from dense.console.failure import Failure, own_rank, report, write_record
from dense.errors import STOPPED, RunStopped, checkpoint_of

USER_ERROR, INTERRUPTED = 2, 130


def run(command: Callable[[], int | None], *, show_traceback: bool = False, log_dir: str | Path | None = None) -> int:
    """Run a command; on an error write two lines to standard error: the cause and how to fix it.

    Args:
        command: What to run; it may return an exit status of its own.
        show_traceback: Let the error through with its traceback instead.
        log_dir: Where the traceback of an unexpected error is kept; a temporary folder by default.

    Returns:
        Exit status: the command's or 0, 2 after an error, 75 if a signal stopped a run that was saved, 130 after Ctrl-C
        elsewhere.
    """
    try:
        return command() or 0
    except RunStopped:
        return STOPPED
    except KeyboardInterrupt:
        sys.stderr.write('interrupted; if a checkpoint was saved, --resume continues from it\n')
        return INTERRUPTED
    except Exception as error:
        failure = _failure(error, log_dir, show_traceback)
        if show_traceback:
            write_record(failure)
            raise
        report(failure)
        return USER_ERROR


def _failure(error: Exception, log_dir: str | Path | None, show_traceback: bool) -> Failure:
    cause, remedy = explain(error) or (
        (last_line(error), 'the traceback is above') if show_traceback else _unexpected(error, log_dir)
    )
    return Failure(
        _one_line(cause),
        _one_line(remedy),
        follows=is_consequence(error),
        checkpoint=checkpoint_of(error),
        shown=show_traceback,
    )


def _one_line(text: str) -> str:
    return re.sub(r'\s+', ' ', text).strip()


def _unexpected(error: Exception, log_dir: str | Path | None) -> tuple[str, str]:
    path = _save(''.join(traceback.format_exception(error)), log_dir)
    return (
        f'unexpected {last_line(error)[:300]}',
        f'the traceback is in {path}; --traceback shows it at once',
    )


def _save(text: str, log_dir: str | Path | None) -> Path:
    rank = own_rank()
    who = '' if rank is None else f'-rank{rank}'
    name = f'error-{time.strftime("%Y%m%d-%H%M%S")}{who}.txt'
    # The work dir itself may be the problem.
    with contextlib.suppress(OSError):
        if log_dir is not None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            (Path(log_dir) / name).write_text(text)
            return Path(log_dir) / name
    path = Path(tempfile.mkdtemp(prefix='dense-')) / name
    path.write_text(text)
    return path
