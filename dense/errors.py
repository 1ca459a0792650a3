"""The error that a user can fix, and the suggestions in its second line."""

import difflib
from collections.abc import Iterable

_CHECKPOINT = 'checkpoint_to_resume'
MOST = 40  # the longest list of names that a person still reads


class UserError(ValueError):
    """Something that the user got wrong and can fix.

    The commands in ``tools/`` print it as two lines, without a traceback, and exit with status 2.

    Args:
        cause: One line: what was got, and what is allowed.
        remedy: One line: how to fix it.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = _one_line(cause), _one_line(remedy)
        super().__init__(f'{self.cause}\n{self.remedy}')

    def __reduce__(self) -> tuple[type['UserError'], tuple[str, str]]:
        # The default would rebuild it from the joined message, one argument short, in another process.
        return type(self), (self.cause, self.remedy)


def _one_line(text: str) -> str:
    """Return a text, which may hold anything from a file or a command line, as one line that a terminal can show."""
    return ''.join(c if c.isprintable() else ' ' if c.isspace() else c.encode('unicode_escape').decode() for c in text)


STOPPED = 75  # exit status, "temporary failure" of sysexits.h: the same command with --resume goes on


class RunStopped(KeyboardInterrupt):
    """A run was saved and ended because of a signal.

    The commands in ``tools/`` exit with status 75. Like the interruption that it is, it is no ``Exception``.

    Args:
        signal: Number of the signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f'stopped by signal {signal}')
        self.signal = signal


def name_checkpoint(error: BaseException, checkpoint: str | None) -> None:
    """Let an error know from where the run can continue.

    Args:
        error: Whatever ended a run.
        checkpoint: The newest file that the run saved, if any.
    """
    error.__dict__[_CHECKPOINT] = checkpoint


def checkpoint_of(error: BaseException) -> str | None:
    """Return the file that :func:`name_checkpoint` noted, or None."""
    return error.__dict__.get(_CHECKPOINT)


def did_you_mean(got: str, allowed: Iterable[str], *, limit: int = 12) -> str:
    """Return the remedy for a name that is not among the allowed ones.

    Args:
        got: The unknown name.
        allowed: The names that would have been right.
        limit: If more names than this are allowed and some are likely, only the likely ones are listed.
    """
    names = sorted(set(allowed))
    near = difflib.get_close_matches(got, names, n=3, cutoff=0.6)
    listed = _listed(names) if names and (len(names) <= limit or not near) else ''
    question = f'did you mean {" or ".join(repr(name) for name in near)}?' if near else ''
    return ' '.join(part for part in (question, listed) if part) or 'nothing is allowed here; remove it'


def _listed(names: list[str]) -> str:
    if len(names) <= MOST:
        return f'allowed: {", ".join(names)}'
    return f'{len(names)} names are allowed, for example {", ".join(names[:: -(-len(names) // 5)])}'
