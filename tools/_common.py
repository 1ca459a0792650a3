"""What the commands share. Nothing here imports PyTorch, so that ``--help`` answers at once."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def without_registration() -> None:
    """Let single modules of ``dense`` be imported without the package itself.

    ``import dense`` imports PyTorch and MMEngine to register classes. What needs neither, such as running an exported
    file, or examining an installation in which they fail, is imported after this call. Nothing happens where ``dense``
    is imported already.
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
    """Return a parser.

    Args:
        name: Of the command.
        description: One sentence.
        epilog: Printed below the options as it stands.
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
    target.add_argument('--traceback', action='store_true', help='show where in the code an error arose')
    return target.parse_args(argv)


def add_config(target: argparse.ArgumentParser) -> None:
    """Add the positional ``CONFIG``."""
    target.add_argument('config', metavar='CONFIG', help='config file, or the name of one that `dense configs` lists')


def add_run_options(target: argparse.ArgumentParser, *, work_dir: str, example: str) -> None:
    """Add the options of commands that run a config on data.

    Args:
        target: Parser of the command.
        work_dir: What the command writes there.
        example: Of a config key and its value.
    """
    launched = 'what started the processes of a distributed run (default: none)'
    target.add_argument('--work-dir', metavar='DIR', help=f'{work_dir} (default: work_dirs/<config name>)')
    target.add_argument('--data-root', metavar='DIR', help="use this copy of the data instead of the config's")
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
    """Run a command; on an error write two lines, its cause and how to mend it.

    Args:
        command: What to run.
        args: From :func:`parse`.
        log_dir: Where the traceback of an unexpected error is kept; a temporary folder by default.
        keep_memory: Where there is no GPU, keep freed memory (:mod:`dense.cpu.allocator`), unless the environment
            forbids it.
        threads_sleep: Waiting threads sleep instead of spinning, unless the environment says otherwise: twice as fast
            beside one other busy process, as workers that load data are (2 cores), and about a tenth slower alone.

    Returns:
        Exit status.
    """
    if threads_sleep:
        os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # OpenMP reads this once, when PyTorch is imported
    # After the command line is read, so that --help need not wait for PyTorch.
    from dense.console.main import run as run_command
    from dense.cpu import allocator, device

    # With a GPU the large blocks are there; loading data for long with ever new sizes should give memory back.
    if keep_memory and device.accelerator() is None:
        allocator.keep_memory()
    return run_command(command, show_traceback=args.traceback, log_dir=log_dir)
