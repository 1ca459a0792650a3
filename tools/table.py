"""Write the tables of models in README.md and docs/models.md: python tools/table.py [--check]."""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, count every model, and write or check the tables.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('table', 'Write the tables of models in README.md and docs/models.md (a minute or two).')
    parser.add_argument('--check', action='store_true', help='write nothing; exit status 2 if a table is out of date')
    args = _common.parse(parser, argv)
    return _common.run(lambda: _write(args), args)


def _write(args: argparse.Namespace) -> None:
    from dense.analysis.table import describe, outdated, table_leaves, update
    from dense.errors import UserError
    from dense.project import IS_CLONE

    if not IS_CLONE:
        raise UserError('the tables are files of a clone, and this is an installation', 'run it in a clone')
    models = [describe(path) for path in table_leaves()]
    if not args.check:
        print('written: ' + (', '.join(path.name for path in update(models)) or 'nothing, everything is up to date'))
        return
    stale = outdated(models)
    if stale:
        raise UserError(f'out of date: {", ".join(path.name for path in stale)}', 'run tools/table.py')
    print(f'up to date: {len(models)} models')


if __name__ == '__main__':
    sys.exit(main())
