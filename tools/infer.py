"""Run an exported file on pictures: python tools/infer.py MODEL IMAGE [IMAGE ...] --out DIR.

Needs NumPy, OpenCV and ONNX Runtime, neither PyTorch nor the OpenMMLab packages.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import _common

EPILOG = """\
Written for each image: a segmentor's labels as NAME.png; a detector's boxes, scores and labels as NAME.json;
and NAME_result.jpg to look at.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run, and write the results.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('infer.py', 'Run an exported detector or segmentor on pictures.', EPILOG)
    parser.add_argument('model', metavar='MODEL', help='file from tools/export.py: .onnx, or .pt2')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='any picture that OpenCV reads')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the results')
    parser.add_argument('--score', type=float, default=0.3, help='least score of an object (default: 0.3)')
    parser.add_argument('--threads', type=int, default=0, help="of the CPU (default: the runtime's choice)")
    args = _common.parse(parser, argv)
    try:
        _infer(args)
    except (OSError, ValueError, ImportError) as error:
        if args.traceback:
            raise
        cause, _, remedy = str(error).partition('\n')
        sys.stderr.write(f'error: {cause}\nremedy: {remedy or "check the arguments; see --help"}\n')
        return 2
    return 0


def _infer(args: argparse.Namespace) -> None:
    _common.without_registration()
    import cv2

    from dense.predict.exported import ExportedModel
    from dense.predict.write_result import write_result

    if not Path(args.model).is_file():
        raise FileNotFoundError(f'there is no file {args.model}\nwrite it with tools/export.py')
    model = ExportedModel(args.model, threads=args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in args.images:
        picture = cv2.imread(name, cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f'{name} is missing or no picture\ngive files that OpenCV reads, such as .jpg and .png')
        print(f'{name}: {write_result(model, picture, out / Path(name).stem, args.score)}')


if __name__ == '__main__':
    sys.exit(main())
