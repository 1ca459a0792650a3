"""Show what is installed, which device is used and where the operators of mmcv come from; name what is wrong."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parents[1]


def load_environment() -> ModuleType:
    """Load ``dense/compat/environment.py`` alone: importing ``dense`` may be what fails."""
    path = PROJECT / 'dense' / 'compat' / 'environment.py'
    spec = importlib.util.spec_from_file_location('dense_environment', path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f'{path} cannot be loaded')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print the page; the exit status is 1 when there is a problem."""
    argparse.ArgumentParser(
        description=__doc__, epilog='Exit status: 0 when all is well, 1 when a problem was found.'
    ).parse_args()
    sys.path.insert(0, str(PROJECT))
    report = load_environment().check_environment()
    print(report)
    return 0 if report.ok else 1


if __name__ == '__main__':
    sys.exit(main())
