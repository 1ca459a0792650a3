"""Helpers that the commands share. Nothing here imports PyTorch, so that ``--help`` responds at once."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def without_registration() -> None:
    """Allow imports of single modules of ``dense`` without the package itself.

    ``import dense`` imports PyTorch and MMEngine to register classes. Code that needs neither, such as running an
    exported file or examining a broken installation, calls this before its imports. It has no effect if ``dense`` has
    already been imported.
    """
    if 'dense' not in sys.modules:
        package = ModuleType('dense')
        package.__path__ = [str(_dense_folder())]
        sys.modules['dense'] = package


def _dense_folder() -> Path:
    spec = importlib.util.find_spec('dense')
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError('the package dense is not installed')
    return Path(spec.submodule_search_locations[0])


def parser(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make the argument parser of a command.

    Args:
        name: Name of the command.
        description: One sentence.
        epilog: Printed below the options without reformatting.
    """
    is_file = Path(sys.argv[0]).name == f'{name}.py'
    return argparse.ArgumentParser(
        prog=f'{name}.py' if is_file else f'dense {name}',
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(target: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add the option that every command has, and parse ``argv``, by default the arguments of the process."""
    target.add_argument('--traceback', action='store_true', help='show where in the code an error occurred')
    return target.parse_args(argv)


def add_config(target: argparse.ArgumentParser) -> None:
    """Add the positional ``CONFIG``."""
    target.add_argument('config', metavar='CONFIG', help='config file, or a name from the list of `dense configs`')


def add_run_options(target: argparse.ArgumentParser, *, work_dir: str, example: str) -> None:
    """Add the options of commands that run a config on data.

    Args:
        target: Parser of the command.
        work_dir: What the command writes to the work dir.
        example: A config key and its value.
    """
    launched = 'how the processes of a distributed run were started (default: none)'
    target.add_argument('--work-dir', metavar='DIR', help=f'{work_dir} (default: work_dirs/<config name>)')
    target.add_argument('--data-root', metavar='DIR', help="folder of the data (default: the config's)")
    target.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=f'for example {example}')
    target.add_argument('--launcher', choices=LAUNCHERS, default='none', help=launched)
    target.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def run(
    command: Callable[[], None],
    args: argparse.Namespace,
    *,
    log_dir: str | None = None,
    keep_memory: bool = True,
    threads_sleep: bool = True,
) -> int:
    """Run a command; on an error, write its cause and how to fix it, one line each.

    Args:
        command: What to run.
        args: From :func:`parse`.
        log_dir: Folder for the traceback of an unexpected error; a temporary folder by default.
        keep_memory: Without a GPU, keep freed memory (:mod:`dense.cpu.allocator`), unless the environment forbids it.
        threads_sleep: Make waiting threads sleep instead of spin, unless the environment says otherwise. On 2 cores,
            this is twice as fast next to another busy process, such as a data loader, and about a tenth slower without.

    Returns:
        Exit status.
    """
    if threads_sleep:
        os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # OpenMP reads this once, when PyTorch is imported
    # Only after the command line has been read, so that --help does not wait for PyTorch.
    from dense.console.main import run as run_command
    from dense.cpu import allocator, device

    # With a GPU, large blocks are in its memory, and long data loading with varying sizes should give memory back.
    if keep_memory and device.accelerator() is None:
        allocator.keep_memory()
    return run_command(command, show_traceback=args.traceback, log_dir=log_dir)
