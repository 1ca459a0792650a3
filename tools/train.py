"""Train a detector or a segmentor: python tools/train.py CONFIG [options]."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog='train.py', description='Train a detector or a segmentor.')
    parser.add_argument('config', metavar='CONFIG', help='config file, relative to here or to the project')
    parser.add_argument('--work-dir', metavar='DIR', help='logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue a stopped run exactly: the newest checkpoint of the work dir, or this one',
    )
    parser.add_argument('--load-from', metavar='PATH', help='start from the weights of this checkpoint')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the images per step')
    parser.add_argument('--data-root', metavar='DIR', help="use this copy of the data instead of the config's")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='for example train_cfg.max_iters=100',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--seed', type=int, help='seed of every random number (default: 0)')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms, even where slower')
    parser.add_argument('--traceback', action='store_true', help='show where in the code an error arose')
    args = parser.parse_args(argv)

    # Waiting threads sleep instead of spinning, as in the demo; OpenMP reads it when PyTorch is imported.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    # After the command line is read, so that --help need not wait for PyTorch.
    from dense.cli import run

    return run(lambda: _train(args), show_traceback=args.traceback, log_dir=args.work_dir)


def _train(args: argparse.Namespace) -> None:
    from dense.launch import load_config, train
    from dense.options import parse_options

    cfg = load_config(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=parse_options(args.cfg_options),
        resume=args.resume,
        load_from=args.load_from,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        seed=args.seed,
        deterministic=args.deterministic,
    )
    train(cfg)
    print(f'done: log and checkpoints are in {cfg.work_dir}')


if __name__ == '__main__':
    sys.exit(main())
