"""Print how much of each room the tests ran through: python .ci/coverage_by_room.py work_dirs/coverage.json."""

import json
import sys
from collections import Counter
from pathlib import Path, PurePath

from dense.console.tables import plain

NUMBERS = ('num_statements', 'covered_lines', 'num_branches', 'covered_branches')


def rooms_of(report: dict) -> dict[str, Counter[str]]:
    """Add up what coverage.py reports for each file: folder, of two levels at most -> numbers."""
    rooms: dict[str, Counter[str]] = {}
    for path, file in sorted(report['files'].items()):
        if PurePath(path).is_absolute():  # a copy that a test installed elsewhere
            continue
        room = '/'.join(PurePath(path).parent.parts[:2])
        rooms.setdefault(room, Counter()).update({name: file['summary'][name] for name in NUMBERS})
    return rooms


def row(room: str, numbers: Counter[str]) -> list[str]:
    """Cells of a room; its share is that of lines and branches together, as coverage.py has it."""
    lines, covered_lines, branches, covered_branches = (numbers[name] for name in NUMBERS)
    share = (covered_lines + covered_branches) / max(lines + branches, 1)
    return [room, f'{covered_lines} / {lines}', f'{covered_branches} / {branches}', f'{share:.1%}']


def main(path: str) -> None:
    """Print the table.

    Args:
        path: JSON report of coverage.py, with branches.
    """
    rooms = rooms_of(json.loads(Path(path).read_text()))
    rows = [row(room, numbers) for room, numbers in rooms.items()]
    total = row('all', sum(rooms.values(), Counter()))
    print(plain([*rows, total], header=['room', 'lines', 'branches', 'covered']))


if __name__ == '__main__':
    main(sys.argv[1])
