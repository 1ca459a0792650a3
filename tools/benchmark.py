"""Measure how fast models train or infer, side by side: python tools/benchmark.py MODEL [MODEL ...] [options]."""

import argparse
import sys
import time
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common

EPILOG = """\
MODEL is one of
  InceptionNeXt:tiny       class and arch of a backbone, without a classifier
  timm:resnet50            a model of timm, without its classifier
  configs/.../NAME.py      a whole detector, segmentor or classifier; with +timm:NETWORK, on a timm backbone
and may be followed by one of these (for example InceptionNeXt:tiny+fused):
  +fused                   rewritten for inference, with batch norms fused
  +lean                    trained with lean MLPs and fused AdamW
  +tuned                   trained with everything that `dense train` chooses on a CPU
  +cp                      trained with activation checkpointing (with_cp=True)
  +onnx                    a backbone, exported as by `dense export`, in ONNX Runtime on the CPU

For the papers' throughput, use the defaults on a GPU; for latency, --mode latency (batch 1, one thread on a CPU).
On a CPU: dense benchmark InceptionNeXt:tiny --baseline timm:convnext_tiny --shape 8 3 224 224 --warmup 2 --iters 5
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, print, and write.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('benchmark', 'Measure how fast models train or infer, side by side.', EPILOG)
    parser.add_argument('models', nargs='+', metavar='MODEL', help='see below; they take turns')
    parser.add_argument('--baseline', metavar='MODEL', help='print how many times as fast as this one the others are')
    parser.add_argument('--mode', choices=('infer', 'train', 'latency'), default='infer', help='default: infer')
    shape_help = (
        'images per step (default: 128 3 224 224; for a config 1, or 2 in training, of the usual size). '
        'N is halved until it fits into memory'
    )
    parser.add_argument('--shape', type=int, nargs=4, metavar=('N', 'C', 'H', 'W'), help=shape_help)
    parser.add_argument('--layout', choices=('both', 'first', 'last'), default='both', help='channels (default: both)')
    parser.add_argument('--warmup', type=int, metavar='STEPS', help='default: 10, as in the papers (GPU latency: 50)')
    parser.add_argument('--iters', type=int, metavar='STEPS', help='timed per turn (default: 40; 200 for latency)')
    parser.add_argument('--repeats', type=int, default=3, metavar='TURNS', help='turns per model (default: 3)')
    parser.add_argument('--threads', type=int, help="CPU threads (default: PyTorch's choice; 1 for latency)")
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: the GPU if there is one')
    parser.add_argument('--optimizer', choices=('sgd', 'adamw'), default='sgd', help='for --mode train (default: sgd)')
    parser.add_argument('--keep-memory', action='store_true', help='as `dense train` does, for every model')
    parser.add_argument('--apart', action='store_true', help='one process per model; +fused, +lean, +tuned keep memory')
    parser.add_argument('--cpu-time', action='store_true', help='measure the CPU time of all threads, not wall time')
    parser.add_argument('--no-tf32', action='store_true', help='full FP32 on a GPU, instead of TF32')
    parser.add_argument('--out', metavar='FILE', help='write the results to a .json or .md file')
    args = _common.parse(parser, argv)
    for name in ('warmup', 'iters', 'repeats', 'threads', 'shape'):
        value = getattr(args, name)
        if value is not None and min(value if name == 'shape' else [value]) < (name != 'warmup'):
            parser.error(f'--{name} must be positive')
    return _common.run(lambda: _benchmark(args), args, keep_memory=args.keep_memory, threads_sleep=False)


def _benchmark(args: argparse.Namespace) -> None:
    from dense.benchmark.case import Protocol
    from dense.benchmark.report import as_text, check_out, write
    from dense.benchmark.run import benchmark

    if args.out:
        check_out(args.out)
    protocol = Protocol(
        mode=args.mode,
        warmup=args.warmup,
        iters=args.iters,
        repeats=args.repeats,
        batch=args.shape[0] if args.shape else None,
        shape=tuple(args.shape[1:]) if args.shape else None,
        layouts=('first', 'last') if args.layout == 'both' else (args.layout,),
        threads=args.threads,
        device=args.device,
        optimizer=args.optimizer,
        tf32=not args.no_tf32,
    )
    clock = time.process_time if args.cpu_time else time.perf_counter
    asked = ((args.cpu_time, 'CPU time of all threads'), (args.keep_memory, 'freed memory is kept'))
    notes = [note for is_asked, note in asked if is_asked] + ['each model in its own process'] * args.apart
    result = benchmark(args.models, protocol, baseline=args.baseline, clock=clock, notes=notes, apart=args.apart)
    print(as_text(result))
    if args.out:
        write(result, args.out)


if __name__ == '__main__':
    sys.exit(main())
