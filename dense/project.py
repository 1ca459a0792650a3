"""Where the project's files are: next to the packages in a clone, inside this package in an installed wheel.

This file imports neither PyTorch nor MMEngine, so commands can list configs without delay.
"""

from fnmatch import fnmatch
from pathlib import Path

from dense.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent

IS_CLONE = (_PACKAGE.parent / 'pyproject.toml').is_file() and (_PACKAGE.parent / 'configs' / '_base_').is_dir()
PROJECT = _PACKAGE.parent if IS_CLONE else _PACKAGE  # the folder that holds configs/


def work_dirs() -> Path:
    """Return the folder of all work dirs: the clone's, or one below the current folder if there is no clone."""
    return (PROJECT if IS_CLONE else Path.cwd()) / 'work_dirs'


def leaves() -> list[Path]:
    """Return every config of the project that can be run, sorted."""
    return sorted(path for path in (PROJECT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def config_names(pattern: str = '') -> list[str]:
    """Return the names of the configs, such as ``configs/mini/NAME.py``, sorted.

    Args:
        pattern: Part of the name, or a pattern with ``*`` and ``?`` for a part; case does not matter.
    """
    names = [path.relative_to(PROJECT).as_posix() for path in leaves()]
    return [name for name in names if fnmatch(name.lower(), f'*{pattern.lower()}*')]


def find_config(path: str | Path) -> Path:
    """Return a config file: one below the current folder, or else the project's own.

    Args:
        path: File, relative to the current folder, to the project or to its ``configs``; or just the name of one of
            the project's configs, with or without ``.py``.

    Raises:
        UserError: There is no such file; the remedy names the likely ones.
    """
    for candidate in (Path(path), PROJECT / path, PROJECT / 'configs' / path):
        if candidate.is_file():
            return candidate.resolve()
    named = [leaf for leaf in leaves() if str(path) in (leaf.name, leaf.stem)]
    if len(named) == 1:
        return named[0]
    raise UserError(f'config file not found: {path}', did_you_mean(str(path), config_names(), limit=0))
