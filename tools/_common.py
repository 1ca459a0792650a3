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


def add_launch_options(target: argparse.ArgumentParser) -> None:
    """Add the options with which a command starts itself in several processes."""
    group = target.add_argument_group('several processes', 'see docs/scaling.md')
    _add_launch_options(group)


def _add_launch_options(target: argparse._ActionsContainer) -> None:
    target.add_argument('--gpus', type=int, metavar='N', help='start N processes here, one per GPU (or on the CPU)')
    restarts = 'after a failure, start all processes again up to K times, from the newest checkpoint'
    target.add_argument('--max-restarts', type=int, metavar='K', help=restarts)
    target.add_argument('--nnodes', type=int, metavar='M', help='machines; start the same command on each')
    meeting = 'where they meet: one of them, and a free port there (default: $MASTER_ADDR:$MASTER_PORT)'
    target.add_argument('--rdzv-endpoint', metavar='HOST:PORT', help=meeting)


def launch(name: str, args: argparse.Namespace, argv: Sequence[str] | None) -> int | None:
    """Start the command in the processes that ``--gpus`` asks for, and wait for them.

    Args:
        name: Name of the command.
        args: From :func:`parse`.
        argv: What was parsed; every other option is passed on.

    Returns:
        Exit status; None if this process is to run the command itself.
    """
    chosen = [option for option in ('max_restarts', 'nnodes', 'rdzv_endpoint') if getattr(args, option) is not None]
    if args.gpus is None and not chosen:
        return None
    without_registration()
    from dense.console.main import run as run_command

    return run_command(lambda: _launch(name, args, argv, chosen), show_traceback=args.traceback)


def _launch(name: str, args: argparse.Namespace, argv: Sequence[str] | None, chosen: list[str]) -> int:
    from dense.errors import UserError
    from dense.project import find_config

    if args.gpus is None:
        option = f'--{chosen[0].replace("_", "-")}'
        raise UserError(f'{option} needs --gpus', 'add --gpus N, the number of processes on this machine')
    if args.launcher != 'none':
        raise UserError(
            f'--gpus starts the processes itself; with --launcher {args.launcher}, something else has',
            'give one of the two',
        )
    find_config(args.config)
    from dense.distributed.start import start

    own = argparse.ArgumentParser(add_help=False)
    _add_launch_options(own)
    _, rest = own.parse_known_args(argv)
    place = ['-m', f'{__package__}.{name}'] if _is_module() else [str(Path(__file__).parent / f'{name}.py')]
    return start(
        [sys.executable, '-u', *place, *rest, '--launcher', 'pytorch'],
        args.gpus,
        nodes=1 if args.nnodes is None else args.nnodes,
        endpoint=args.rdzv_endpoint,
        max_restarts=args.max_restarts or 0,
    )


def _is_module() -> bool:
    # In a clone, the files run from any folder; the installed package runs by its name only.
    return __package__ != 'tools'


def run(
    command: Callable[[], int | None],
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
