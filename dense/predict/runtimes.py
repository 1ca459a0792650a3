"""Runs an exported file with ONNX Runtime."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dense.errors import UserError
from dense.predict.description import METADATA, Description, read_description
from dense.predict.onnx_file import read_properties

Runner = Callable[[np.ndarray], list[np.ndarray]]  # image (1, 3, H, W), RGB, 0..255, to the file's outputs
# Others would compile, cache or load what a file names.
PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')
_FATAL = 4  # what ONNX Runtime itself writes to the screen
_REMEDY = 'export the model again with `dense export`, or check where the file comes from'


def open_onnx(path: str | Path, threads: int) -> tuple[Runner, Description]:
    """Open an ONNX file.

    Args:
        path: The file.
        threads: CPU threads; 0 leaves the choice to the runtime.

    Returns:
        A function of an image, and the file's description.

    Raises:
        UserError: ``dense export`` did not write it for a whole model, or it cannot be run.
    """
    properties = read_properties(path)
    if METADATA not in properties:
        raise UserError(f'{path} is an ONNX file without a description', 'give a file that `dense export` wrote')
    about = read_description(properties[METADATA])
    session = _session(path, threads)
    _check_ends(path, session, about.outputs)
    (image,) = session.get_inputs()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        try:
            return session.run(list(about.outputs), {image.name: pixels})
        except Exception as error:  # ONNX Runtime's errors have no common base class
            size = f'{pixels.shape[2]} x {pixels.shape[3]} pixels'
            raise UserError(f'{path} fails on a picture of {size}: {_first_line(error)}', _REMEDY) from error

    return run, about


def _session(path: str | Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError('running an exported file needs onnxruntime', 'pip install onnxruntime') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _FATAL
    providers = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # as above
        raise UserError(f'ONNX Runtime cannot open {path}: {_first_line(error)}', _REMEDY) from error


def _check_ends(path: str | Path, session: Any, outputs: Sequence[str]) -> None:
    inputs = session.get_inputs()
    found = {output.name for output in session.get_outputs()}
    if len(inputs) != 1 or inputs[0].type != 'tensor(float)' or len(inputs[0].shape) != 4:
        raise UserError(f'{path} does not take one image', _REMEDY)
    if not found.issuperset(outputs):
        raise UserError(f'{path} lacks outputs that it describes: {", ".join(sorted({*outputs} - found))}', _REMEDY)


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).split('\n')[0]
    return ''.join(character if character.isprintable() else ' ' for character in text)[:200]
