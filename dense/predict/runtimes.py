"""What runs an exported file: ONNX Runtime, or PyTorch for ``.pt2``. ``infer.py`` names the files that belong to it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

METADATA = 'inceptionnext-dense'  # key of the file's description
Runner = Callable[[np.ndarray], list[np.ndarray]]  # image (1, 3, H, W), RGB, 0..255, to the file's outputs


def open_onnx(path: str, threads: int) -> tuple[Runner, dict[str, Any]]:
    """Open an ONNX file.

    Args:
        path: The file.
        threads: Of the CPU; 0 leaves it to the runtime.

    Returns:
        A function of an image, and the file's description.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    return lambda image: session.run(None, {session.get_inputs()[0].name: image}), about


def open_torch(path: str, threads: int) -> tuple[Runner, dict[str, Any]]:
    """Open a program of ``torch.export``; the same as :func:`open_onnx`."""
    import torch
    import torchvision  # noqa: F401  its operators are in the programs of detectors

    if threads:
        torch.set_num_threads(threads)
    files = {METADATA: ''}
    module = torch.export.load(path, extra_files=files).module()

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(image))]

    return run, json.loads(files[METADATA])
