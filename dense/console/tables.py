"""Every table that is printed or written: columns of numbers for the screen, Markdown for files, names with texts."""

import io
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence

# rich is imported where it is used: tools/doctor.py must work without any installed package.

_WIDEST = 10_000  # columns of the screen that rich draws on; no line is broken or cut


def plain(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None, texts: Collection[int] = (0,)) -> str:
    """Return rows as aligned columns.

    Args:
        rows: Cells, the same number in each row.
        header: Names of the columns.
        texts: Which columns are aligned to the left; the others, numbers, to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows and header is None:
        return ''
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header is not None)
    for i, name in enumerate(rows[0] if header is None else header):
        table.add_column(Text(name), justify='left' if i in texts else 'right', no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    screen = Console(file=io.StringIO(), width=_WIDEST, color_system=None, force_jupyter=False)
    with screen.capture() as drawn:
        screen.print(table)
    return '\n'.join(line.rstrip() for line in drawn.get().splitlines())


def named_numbers(values: Mapping[str, float], *, digits: int = 4) -> str:
    """Return one line per name and number.

    Args:
        values: Name -> number.
        digits: Digits after the decimal point.
    """
    return plain([[name, f'{value:.{digits}f}'] for name, value in values.items()])


def named_texts(rows: Iterable[tuple[str, str]], width: int) -> str:
    """Return names with their texts next to them, or below if the names take half of the width. No word is broken.

    Args:
        rows: Names and texts.
        width: Number of columns.
    """
    rows = list(rows)
    longest = max((len(name) for name, _ in rows), default=0)
    is_beside = longest + 2 <= width // 2
    indent = ' ' * (longest + 2 if is_beside else 4)
    blocks = []
    for name, text in rows:
        start = name.ljust(len(indent)) if is_beside else f'{name}\n{indent}'
        lines = textwrap.wrap(text, width - len(indent), break_on_hyphens=False, break_long_words=False)
        blocks.append((start + f'\n{indent}'.join(lines)).rstrip())
    return '\n'.join(blocks)


def markdown(rows: Sequence[Sequence[str]], *, header: Sequence[str], texts: Collection[int] = (0,)) -> str:
    """Return a Markdown table; its cells are not padded, so a changed cell changes one line of a file.

    Args:
        rows: Cells, the same number in each row; without ``|``.
        header: Names of the columns.
        texts: As in :func:`plain`.
    """
    rule = ['---' if i in texts else '--:' for i in range(len(header))]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, rule, *rows))
