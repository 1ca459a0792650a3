"""Export a trained model to one file that runs elsewhere: python tools/export.py CONFIG CHECKPOINT --out FILE."""

import argparse
import sys
from pathlib import Path

if __package__:
    from . import _common
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools import _common

EPILOG = """\
The file takes one RGB image, 0..255, with height and width of at least 64 pixels
(detectors: 96), and returns
  a segmentor    labels (1, H, W), or with --logits the scores of all classes (1, classes, H, W)
  Mask R-CNN     boxes (K, 4) in pixels, scores (K,), labels (K,), masks (K, 28, 28) to be scaled to the boxes
  --backbone     one map for each output; the input is a normalised image
`dense infer` runs an ONNX file without PyTorch and the OpenMMLab packages.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, export, and print what was written.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status.
    """
    parser = _common.parser('export', 'Export a trained model to one file that runs elsewhere.', EPILOG)
    _common.add_config(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file with the weights (*.pth)')
    parser.add_argument('--out', required=True, metavar='FILE', help='the file to write: .onnx, or .pt2 for torch')
    parser.add_argument('--format', choices=('onnx', 'torch'), default='onnx', help='default: onnx')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='size of the image to record with (default: 256 320)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='config keys that training was run with'
    )
    parser.add_argument('--backbone', action='store_true', help='export only the backbone')
    parser.add_argument('--logits', action='store_true', help='return the scores of a segmentor instead of labels')
    args = _common.parse(parser, argv)
    return _common.run(lambda: _export(args), args)


def _export(args: argparse.Namespace) -> None:
    from dense.engine.options import parse_options
    from dense.export.from_config import export_config

    graph = export_config(
        args.config,
        args.checkpoint,
        args.out,
        fmt=args.format,
        shape=tuple(args.shape) if args.shape else None,
        backbone=args.backbone,
        logits=args.logits,
        options=parse_options(args.cfg_options),
    )
    print(f'{args.out}: {", ".join(graph.output_names)}; {Path(args.out).stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    sys.exit(main())
