"""Tables as text: aligned columns for the screen, Markdown for files."""

from collections.abc import Sequence


def plain(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> str:
    """Return rows as aligned columns: the first to the left, the others, numbers, to the right.

    Args:
        rows: Cells, equally many in each.
        header: Names of the columns.
    """
    lines = [*([header] if header else []), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    return '\n'.join(
        '  '.join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def markdown(rows: Sequence[Sequence[str]], *, header: Sequence[str], numbers: Sequence[int] = ()) -> str:
    """Return a Markdown table.

    Args:
        rows: Cells, equally many in each; without ``|``.
        header: Names of the columns.
        numbers: Which columns are aligned to the right.
    """
    rule = ['--:' if i in numbers else '---' for i in range(len(header))]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in (header, rule, *rows))
