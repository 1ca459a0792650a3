"""Collects what is wrong in a file, to say all of it at once with counts and examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dense.errors import UserError

MAX_NAMED = 3


@dataclass
class Findings:
    """What a check found in a file.

    Attributes:
        source: The file.
        errors: Causes and remedies.
        notices: Lines for the user.
    """

    source: str | Path
    errors: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def error(self, what: str, examples: Sequence[object], remedy: str) -> None:
        """Add something that cannot be repaired, if there are examples.

        Args:
            what: For example ``'boxes hold NaN'``; their number is put in front.
            examples: All of them; the first are named.
            remedy: How to mend it.
        """
        if examples:
            self.errors.append((_counted(what, examples), remedy))

    def notice(self, what: str, examples: Sequence[object]) -> None:
        """Add something that was repaired or left out, if there are examples.

        Args:
            what: As in :meth:`error`.
            examples: Likewise.
        """
        if examples:
            self.notices.append(f'{Path(self.source).name}: {_counted(what, examples)}')

    def raise_errors(self) -> None:
        """Raise all errors as one.

        Raises:
            UserError: There are errors.
        """
        if self.errors:
            causes, remedies = zip(*self.errors, strict=True)
            raise UserError(f'{self.source}: {"; ".join(causes)}', '; '.join(dict.fromkeys(remedies)))


def _counted(what: str, examples: Sequence[object]) -> str:
    return f'{len(examples)} {what} ({named(examples)})'


def named(items: Iterable[object], most: int = MAX_NAMED) -> str:
    """Return the first of some items as text, with dots if there are more."""
    listed = list(items)
    # A value from a damaged file may be of any length and kind.
    texts = [str(item).encode('unicode_escape').decode()[:200] for item in listed[:most]]
    return ', '.join(texts) + (', ...' if len(listed) > most else '')
