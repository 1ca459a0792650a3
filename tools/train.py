"""Train a detector, a segmentor or a classifier: python tools/train.py CONFIG [options]."""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common

AMP = (
    'mixed precision; an error on a CPU without bfloat16, where it is far slower, unless you add '
    '--cfg-options optim_wrapper.dtype=bfloat16'
)
AGAIN = 'continue from the newest checkpoint of this run, if there is one; for job systems that start a job again'


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('train', 'Train a detector, a segmentor or a classifier.')
    _common.add_config(parser)
    _common.add_run_options(parser, work_dir='logs and checkpoints', example='train_cfg.max_iters=100')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue a stopped run exactly, from this checkpoint or the newest one in the work dir',
    )
    parser.add_argument('--resume-if-any', action='store_true', help=AGAIN)
    parser.add_argument('--load-from', metavar='PATH', help='start from the weights of this checkpoint')
    parser.add_argument('--amp', action='store_true', help=AMP)
    parser.add_argument('--compile', action='store_true', help='compile the backbone')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the images per step')
    parser.add_argument('--seed', type=int, help='seed of all random numbers (default: 0)')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms, even where slower')
    parser.add_argument(
        '--save-every', type=float, metavar='MINUTES', help='also save a checkpoint every so many minutes'
    )
    _common.add_launch_options(parser)
    args = _common.parse(parser, argv)
    if args.save_every is not None and not args.save_every > 0:
        parser.error('--save-every takes a number of minutes above 0')
    status = _common.launch('train', args, argv)
    if status is not None:
        return status
    return _common.run(lambda: _train(args), args, log_dir=args.work_dir)


def _train(args: argparse.Namespace) -> None:
    from dense.console.failure import own_rank
    from dense.distributed.join import leave_processes
    from dense.engine.launch import load_config, train
    from dense.engine.options import parse_options
    from dense.engine.restart import resume_if_any

    cfg = load_config(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=parse_options(args.cfg_options),
        resume=args.resume,
        load_from=args.load_from,
        amp=args.amp,
        compiled=args.compile,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        seed=args.seed,
        deterministic=args.deterministic,
        save_every=args.save_every,
    )
    if args.resume_if_any:
        resume_if_any(cfg)
    train(cfg)
    leave_processes()
    if not own_rank():
        print(f'done: log and checkpoints are in {cfg.work_dir}')


if __name__ == '__main__':
    sys.exit(main())
