"""Writes a model to a file: :func:`export_model`."""

import importlib.util
import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from dense.compat.supported import install_extra
from dense.errors import UserError
from dense.export.graphs import ExportGraph
from dense.predict.description import METADATA
from dense.predict.seal import EMPTY, KEY, SEALED, seal

FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
NEEDED = ('onnx', 'onnxscript')
OPSET = 20  # has GELU and a RoIAlign without the old half-pixel shift
LARGEST = 1 << 15  # pixels; without a bound the recording cannot be proved to hold for every size
DEFERRED = 'prefer_deferred_runtime_asserts_over_guards'
AGREEMENT = 0.99  # share of the values in which a recording must match the model at another size


def export_model(
    graph: ExportGraph,
    path: str | Path,
    *,
    fmt: str = 'onnx',
    shape: tuple[int, int] = (256, 320),
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Record a graph for images of any size and write it to a file.

    Args:
        graph: What the file computes.
        path: The file; ONNX puts weights above 2 GB next to it.
        fmt: ``onnx``, or ``torch`` for a program of ``torch.export`` (``.pt2``).
        shape: Height and width in pixels of the image that the recording runs on: different, and at least the
            graph's smallest.
        metadata: Stored in the file as JSON, with the names of the outputs and what they are.

    Returns:
        The file.

    Raises:
        UserError: A package is missing, or an argument is out of its range.
    """
    path = Path(path)
    _check(path, fmt, shape, graph.SMALLEST)
    about = dict(metadata or {}, task=graph.task, outputs=graph.output_names, smallest=graph.SMALLEST)
    program = record(graph, shape)
    _prove(graph, program, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    if fmt == 'torch':
        torch.export.save(program, path, extra_files={METADATA: json.dumps(about)})
    else:
        _write_onnx(program, graph, path, json.dumps({**about, SEALED: True}))
    return path


def _check(path: Path, fmt: str, shape: tuple[int, int], smallest: int) -> None:
    if fmt not in FORMATS:
        raise UserError(f'unknown format {fmt!r}', f'allowed: {", ".join(FORMATS)}')
    if path.suffix != FORMATS[fmt]:
        raise UserError(f'{path} does not end in {FORMATS[fmt]}', f'name it {path.with_suffix(FORMATS[fmt])}')
    if min(shape) < smallest or shape[0] == shape[1]:
        raise UserError(
            f'cannot record at {shape[0]} x {shape[1]} pixels',
            f'give two different sides of at least {smallest}; the file still runs at other sizes',
        )
    if DEFERRED not in inspect.signature(torch.export.export).parameters:
        raise UserError(f'PyTorch {torch.__version__} is too old to export', 'install the version in constraints.txt')
    if fmt == 'onnx':
        need_packages(*NEEDED, purpose='writing ONNX')


def need_packages(*names: str, purpose: str) -> None:
    """Check that optional packages are installed.

    Raises:
        UserError: One is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{purpose} needs {" and ".join(missing)}', install_extra('export'))


def record(graph: ExportGraph, shape: tuple[int, int]) -> ExportedProgram:
    """Record a graph by running it once, with height and width, and perhaps the batch, left open.

    Args:
        graph: What to record; parameters stay where they are.
        shape: Height and width of the image, in pixels.
    """
    dims = {axis: Dim(name, min=1 if axis == 0 else graph.SMALLEST, max=LARGEST) for axis, name in _axes(graph).items()}
    images = example_images(shape, batch=2 if graph.ANY_BATCH else 1)  # a batch of one would become a fixed number
    with torch.no_grad():
        return torch.export.export(
            graph.eval(),
            (images,),
            dynamic_shapes={graph.INPUT: dims},
            # Claims about strides that hold for every size but that PyTorch cannot prove are checked at run time.
            **{DEFERRED: True},
        )


def _axes(graph: ExportGraph) -> dict[int, str]:
    """Name the axes of the images whose lengths are left open."""
    return {**({0: 'batch'} if graph.ANY_BATCH else {}), 2: 'height', 3: 'width'}


def example_images(shape: tuple[int, int], *, batch: int = 1) -> torch.Tensor:
    """Return random pixels, always the same, 0..255, shape ``(batch, 3, *shape)``."""
    return torch.randint(256, (batch, 3, *shape), generator=torch.Generator().manual_seed(0)).float()


def _prove(graph: ExportGraph, program: ExportedProgram, shape: tuple[int, int]) -> None:
    # A layer that turns a size into a plain number fixes it, and the recording does not report that.
    other = (shape[1] + 37, shape[0] + 5)
    image = example_images(other)
    with torch.no_grad():
        recorded, computed = (graph.signature(run(image)) for run in (program.module(), graph))
    same = recorded.shape == computed.shape and torch.isclose(recorded, computed, rtol=1e-3, atol=1e-3).float().mean()
    if same is False or (computed.numel() and same < AGREEMENT):
        raise UserError(
            f'recorded at {shape[0]} x {shape[1]} pixels, the model computes something else at {other[0]} x {other[1]}',
            'a layer fixes the size of its output; replace it in the config, or export the backbone with --backbone',
        )


def _write_onnx(program: ExportedProgram, graph: ExportGraph, path: Path, text: str) -> None:
    logging.getLogger('onnxscript').setLevel(logging.ERROR)
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        output_names=list(graph.output_names),
        dynamic_shapes={graph.INPUT: _axes(graph)},
        verbose=False,
    )
    assert onnx_program is not None
    for output, names in zip(onnx_program.model.graph.outputs, graph.output_dims, strict=True):
        assert output.shape is not None
        for axis, name in enumerate(names):
            if name is not None:
                output.shape[axis] = name
    onnx_program.model.metadata_props[METADATA] = text
    onnx_program.model.metadata_props[KEY] = EMPTY
    onnx_program.save(path)
    beside = path.with_name(f'{path.name}.data')  # where torch puts the weights of a large model
    seal(path, [beside] if _names(path, beside) else [])


def _names(path: Path, beside: Path) -> bool:
    """Tell whether a file takes weights from another; there may be one of an earlier export."""
    return beside.is_file() and beside.name.encode() in path.read_bytes()
