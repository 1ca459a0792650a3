"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, test, and print the metrics.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog='test.py', description='Evaluate a checkpoint.')
    parser.add_argument('config', metavar='CONFIG', help='config file, relative to here or to the project')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file that training saved')
    parser.add_argument('--out', metavar='FILE', help='write the metrics as JSON')
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures of input, truth and prediction side by side')
    parser.add_argument('--tta', action='store_true', help="average over the config's test-time augmentations")
    parser.add_argument('--data-root', metavar='DIR', help="use this copy of the data instead of the config's")
    parser.add_argument('--work-dir', metavar='DIR', help='logs (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='for example test_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--traceback', action='store_true', help='show where in the code an error arose')
    args = parser.parse_args(argv)

    # Waiting threads sleep instead of spinning, as in the demo; OpenMP reads it when PyTorch is imported.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    # After the command line is read, so that --help need not wait for PyTorch.
    from dense.cli import run

    return run(lambda: _test(args), show_traceback=args.traceback, log_dir=args.work_dir)


def _test(args: argparse.Namespace) -> None:
    from dense.launch import load_config, test
    from dense.options import parse_options
    from dense.progress import table

    cfg = load_config(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=parse_options(args.cfg_options),
        launcher=args.launcher,
    )
    metrics = test(cfg, args.checkpoint, out=args.out, show_dir=args.show_dir, tta=args.tta)
    print(table(metrics))
    for what, place in (('metrics', args.out), ('pictures', args.show_dir)):
        if place:
            print(f'{what}: {place}')


if __name__ == '__main__':
    sys.exit(main())
