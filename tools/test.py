"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [options]."""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, test, and print the metrics.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('test', 'Evaluate a checkpoint.')
    _common.add_config(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file saved by training')
    parser.add_argument('--out', metavar='FILE', help='write the metrics to a JSON file')
    parser.add_argument('--show-dir', metavar='DIR', help='write pictures of input, truth and prediction side by side')
    parser.add_argument('--tta', action='store_true', help="average over the config's test-time augmentations")
    _common.add_run_options(parser, work_dir='logs', example='test_dataloader.batch_size=4')
    _common.add_launch_options(parser)
    args = _common.parse(parser, argv)
    status = _common.launch('test', args, argv)
    if status is not None:
        return status
    return _common.run(lambda: _test(args), args, log_dir=args.work_dir)


def _test(args: argparse.Namespace) -> None:
    from dense.console.failure import own_rank
    from dense.console.tables import named_numbers
    from dense.distributed.join import leave_processes
    from dense.engine.launch import load_config, test
    from dense.engine.options import parse_options

    cfg = load_config(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=parse_options(args.cfg_options),
        launcher=args.launcher,
    )
    metrics = test(cfg, args.checkpoint, out=args.out, show_dir=args.show_dir, tta=args.tta)
    leave_processes()
    if own_rank():
        return
    print(named_numbers(metrics) or 'no metrics')
    for what, place in (('metrics', args.out), ('pictures', args.show_dir)):
        if place:
            print(f'{what}: {place}')


if __name__ == '__main__':
    sys.exit(main())
