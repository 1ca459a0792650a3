"""Count parameters and multiply-accumulates of configs: python tools/complexity.py CONFIG [options]."""

import argparse
import json
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common

EPILOG = """\
Counted as in papers: one image, 1000 regions for a box head and 100 for a mask head, no NMS. The parameters of an
auxiliary head count, its multiply-accumulates (MACs) do not. Nothing is computed, so a config takes a second or two.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, count, and print.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('complexity', 'Count parameters and multiply-accumulates, part by part.', EPILOG)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', help='config files, or names from the list of `dense configs`'
    )
    parser.add_argument('--all', action='store_true', help='every config of the project, one line each')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image in pixels (default: the usual size in publications of this method)',
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts as JSON')
    args = _common.parse(parser, argv)
    if bool(args.configs) == args.all:
        parser.error('give CONFIG, or --all')
    return _common.run(lambda: _count(args), args)


def _count(args: argparse.Namespace) -> None:
    from dense.analysis.complexity import config_complexity, overview
    from dense.project import leaves

    shape = tuple(args.shape) if args.shape else None
    counts = []
    for path in leaves() if args.all else args.configs:
        counts.append(config_complexity(path, shape))
        if not args.all:
            print(counts[-1], end='\n\n')
    if args.all:
        print(overview(counts))
    if args.json:
        Path(args.json).write_text(json.dumps([count.as_dict() for count in counts], indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(main())
