"""Show what is installed, which device is used and where mmcv's operators come from, and report any problems."""

import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common


def main(argv: list[str] | None = None) -> int:
    """Check the installation and print the report.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, or 1 if there is a problem.
    """
    epilog = 'Exit status: 0 if no problem was found, otherwise 1.'
    _common.parser('doctor', __doc__, epilog).parse_args(argv)
    _common.without_registration()  # importing everything may be what fails
    from dense.compat.environment import check_environment

    report = check_environment()
    print(report)
    return 0 if report.ok else 1


if __name__ == '__main__':
    sys.exit(main())
