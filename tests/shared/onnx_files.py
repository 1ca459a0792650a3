"""Small ONNX files like those of an export, and damaged or hostile ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dense.predict.seal import EMPTY, KEY, SEALED, seal

METADATA = 'inceptionnext-dense'
ABOUT: dict[str, Any] = dict(
    task='labels',
    outputs=['labels'],
    smallest=8,
    resize=None,
    classes=['red', 'green', 'blue'],
    palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]],
    numbers=[1, 2, 3],
)
BOXES = np.array([[2, 3, 12, 13], [20, 4, 30, 24], [1, 1, 5, 5]], np.float32)


def segmentor(path: Path, *, about: dict[str, Any] | str | None = ABOUT, extra: tuple[Any, ...] = ()) -> Path:
    """Write a file that labels each pixel by its strongest channel: 0 red, 1 green, 2 blue.

    Args:
        path: The file.
        about: Its description, None for none.
        extra: Nodes and tensors that are there besides.
    """
    more = [item for item in extra if isinstance(item, onnx.NodeProto)]
    nodes = [helper.make_node('ArgMax', ['image'], ['labels'], axis=1, keepdims=0), *more]
    outputs = [helper.make_tensor_value_info('labels', TensorProto.INT64, [1, 'height', 'width'])]
    # As outputs, so that nothing is left out as unused.
    outputs += [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in more]
    return _write(path, nodes, outputs, [item for item in extra if isinstance(item, TensorProto)], about)


def sealed(path: Path, *others: Path, extra: tuple[Any, ...] = ()) -> Path:
    """Write such a file with its hash in it.

    Args:
        path: The file.
        *others: Files that it takes weights from.
        extra: As in :func:`segmentor`.
    """
    segmentor(path, about=dict(ABOUT, **{SEALED: True}), extra=extra)
    model = onnx.load(path, load_external_data=False)
    helper.set_model_props(model, {**{prop.key: prop.value for prop in model.metadata_props}, KEY: EMPTY})
    path.write_bytes(model.SerializeToString())
    seal(path, others)
    return path


def detector(path: Path, *, masks: bool = True, scores: tuple[float, ...] = (0.9, 0.8, 0.1)) -> Path:
    """Write a file that finds the three :data:`BOXES` in every image; the mask of each is its upper half."""
    grid = np.zeros((3, 28, 28), np.float32)
    grid[:, :14] = 1
    values = dict(boxes=BOXES, scores=np.array(scores, np.float32), labels=np.array([0, 2, 1]), masks=grid)
    names = list(values)[: 4 if masks else 3]
    # Added to nothing of the image, so that the image is an input.
    nodes = [
        helper.make_node('ReduceSum', ['image'], ['sum'], keepdims=0),
        helper.make_node('Mul', ['sum', 'zero'], ['nothing']),
        *(
            helper.make_node('Identity', [f'{name}_0'], [name])
            if name == 'labels'
            else helper.make_node('Add', [f'{name}_0', 'nothing'], [name])
            for name in names
        ),
    ]
    tensors = [numpy_helper.from_array(values[name], f'{name}_0') for name in names]
    tensors.append(numpy_helper.from_array(np.array(0, np.float32), 'zero'))
    kinds = {name: TensorProto.INT64 if name == 'labels' else TensorProto.FLOAT for name in names}
    outputs = [helper.make_tensor_value_info(name, kinds[name], values[name].shape) for name in names]
    return _write(path, nodes, outputs, tensors, dict(ABOUT, task='instances', outputs=names, numbers=[1, 44, 90]))


def external_tensor(location: str) -> TensorProto:
    """A tensor of four numbers that lies in another file."""
    tensor = TensorProto(name='outside', data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key='location', value=location)
    return tensor


def _write(path: Path, nodes: Any, outputs: Any, tensors: Any, about: dict[str, Any] | str | None) -> Path:
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, [1, 3, 'height', 'width'])
    graph = helper.make_graph(nodes, 'graph', [image], outputs, tensors)
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid('', 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if about is not None:
        helper.set_model_props(model, {METADATA: about if isinstance(about, str) else json.dumps(about)})
    path.write_bytes(model.SerializeToString())
    return path
