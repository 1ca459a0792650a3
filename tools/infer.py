"""Run an exported file on pictures: python tools/infer.py MODEL IMAGE [IMAGE ...] --out DIR.

It needs NumPy, OpenCV, Pillow and ONNX Runtime, but neither PyTorch nor the OpenMMLab packages.
"""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common

EPILOG = """\
Each image gives NAME_result.jpg to look at, and NAME.png with a segmentor's labels, numbered as in training, or
NAME.json with a detector's boxes, scores, labels, category ids and masks (COCO's run lengths).
Pictures that cannot be read are named, the others are processed, and the exit status is 2.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run, and write the results.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('infer', 'Run an exported detector or segmentor on pictures.', EPILOG)
    parser.add_argument('model', metavar='MODEL', help='.onnx file from `dense export`')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='any picture that OpenCV reads')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')
    parser.add_argument('--score', type=float, default=0.3, help='minimum score of an object (default: 0.3)')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: the runtime's choice)")
    args = _common.parse(parser, argv)
    if args.threads < 0:
        parser.error('--threads must not be negative')
    _common.without_registration()
    from dense.console.main import run

    return run(lambda: _infer(args), show_traceback=args.traceback)


def _infer(args: argparse.Namespace) -> None:
    from dense.predict.run import predict_files

    predict_files(args.model, args.images, args.out, least_score=args.score, threads=args.threads, say=print)


if __name__ == '__main__':
    sys.exit(main())
