"""List the configs of the project: python tools/configs.py [PATTERN]."""

import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and print the names.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, or 1 if no name matches.
    """
    parser = _common.parser('configs', 'List the configs: names that the other commands accept in any folder.')
    parser.add_argument('pattern', nargs='?', default='', metavar='PATTERN', help="part of a name; '*' is a wildcard")
    args = _common.parse(parser, argv)
    _common.without_registration()
    from dense.project import config_names

    names = config_names(args.pattern)
    print('\n'.join(names) or f'no config matches *{args.pattern}*; leave PATTERN out to list all')
    return 0 if names else 1


if __name__ == '__main__':
    sys.exit(main())
