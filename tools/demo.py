"""Train Mask R-CNN and UperNet with InceptionNeXt-Atto on generated scenes: python tools/demo.py [options]."""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the demo.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, 1 if a score is below its target, 2 after an error.
    """
    parser = _common.parser(
        'demo', 'Write generated scenes, train Mask R-CNN and UperNet on them, test both and save pictures.'
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='folder for all output; emptied first if an earlier demo wrote it (default: work_dirs/demo)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the scenes and the trainings (default: 0)')
    args = _common.parse(parser, argv)

    missed: list[str] = []
    status = _common.run(lambda: missed.extend(_demo(args)), args)
    if missed:
        sys.stderr.write(f'missed: {", ".join(missed)}\n')
    return status or int(bool(missed))


def _demo(args: argparse.Namespace) -> list[str]:
    from dense.demo.run import run_demo
    from dense.project import work_dirs

    work_dir = args.work_dir or work_dirs() / 'demo'
    return [score.name for score in run_demo(work_dir, seed=args.seed) if not score.reached]


if __name__ == '__main__':
    sys.exit(main())
