"""Exports a config and a checkpoint to a file: :func:`export_config`, which ``tools/export.py`` calls."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from backbones.base import DenseBackbone
from dense.console.output import quiet_libraries
from dense.data.config_queries import heads_of
from dense.engine.checkpoint import CheckpointMatchHook
from dense.engine.config import load_config
from dense.engine.values import check_values
from dense.errors import UserError
from dense.export.detector import TwoStageGraph
from dense.export.graphs import BackboneGraph, ExportGraph, SegmentorGraph
from dense.export.write import export_model


def export_config(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    fmt: str = 'onnx',
    shape: tuple[int, int] | None = None,
    backbone: bool = False,
    logits: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ExportGraph:
    """Write the trained model of a config to a file.

    Args:
        config: File, relative to the current folder or to the project.
        checkpoint: File with the model's weights; every tensor must fit.
        out: The file to write.
        fmt: ``onnx`` or ``torch``.
        shape: Height and width of the image to record with; 256 x 320 by default.
        backbone: Export only the backbone's maps, of normalised images.
        logits: Export a segmentor's scores of all classes instead of labels.
        options: Config keys in dotted form and their values, as in training.

    Returns:
        What the file computes.

    Raises:
        UserError: There is something that the user can fix.
    """
    cfg = load_config(config, options=options)
    check_values(cfg)
    with quiet_libraries():
        model, classes = _load(cfg, checkpoint)
        graph = choose_graph(model, backbone=backbone, logits=logits)
        export_model(graph, out, fmt=fmt, shape=shape or (256, 320), metadata=describe(cfg, classes, backbone=backbone))
    return graph


def _load(cfg: Config, checkpoint: str | Path) -> tuple[nn.Module, Mapping[str, Any]]:
    if not Path(checkpoint).is_file():
        raise UserError(f'checkpoint not found: {checkpoint}', 'give the file that training saved (*.pth)')
    content = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
    classes = content.get('meta', {}).get('dataset_meta')
    classes = classes if isinstance(classes, Mapping) else {}
    if isinstance(classes.get('classes'), list | tuple) and classes['classes']:
        for _, head in heads_of(cfg.model):  # your own data sets its classes in training only
            head['num_classes'] = len(classes['classes'])
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    CheckpointMatchHook().after_load_checkpoint(SimpleNamespace(model=model), content)
    state = content.get('state_dict', content)
    model.load_state_dict({name.removeprefix('module.'): tensor for name, tensor in state.items()})
    return model, classes


def choose_graph(model: nn.Module, *, backbone: bool = False, logits: bool = False) -> ExportGraph:
    """Return what a file of the model computes.

    Args:
        model: In evaluation mode.
        backbone: Only its backbone.
        logits: A segmentor's scores instead of labels.

    Raises:
        UserError: This kind of model is not supported.
    """
    if backbone:
        part = model.get_submodule('backbone')
        if not isinstance(part, DenseBackbone):
            raise UserError(f'the backbone {type(part).__name__} is not from this project', 'export the whole model')
        return BackboneGraph(part)
    if hasattr(model, 'decode_head'):
        return SegmentorGraph(model, logits=logits)
    if hasattr(model, 'roi_head'):
        return TwoStageGraph(model)
    raise UserError(f'a whole {type(model).__name__} cannot be exported', 'export its backbone with --backbone')


def describe(cfg: Config, classes: Mapping[str, Any], *, backbone: bool = False) -> dict[str, Any]:
    """Return what is needed to run the file: size of images, and names, colours and numbers of classes.

    Args:
        cfg: Config of the model; its test pipeline says how images are resized.
        classes: ``classes``, ``palette`` and what numbers them, as checkpoints store them.
        backbone: The file takes normalised images.
    """
    rule = next(_resizes(cfg.get('test_dataloader') or {}), None)
    return dict(
        input='normalized image' if backbone else 'RGB, 0..255',
        resize=rule and dict(scale=_pair(rule['scale']), keep_ratio=bool(rule.get('keep_ratio'))),
        classes=list(classes.get('classes') or ()),
        palette=[[int(value) for value in color] for color in classes.get('palette') or ()],
        numbers=_numbers(cfg, classes),
    )


def _pair(scale: Any) -> list[int]:
    return [scale, scale] if isinstance(scale, int) else list(scale)


def _numbers(cfg: Config, classes: Mapping[str, Any]) -> list[int]:
    """Return the number of each class in the data: COCO's category id, or value in label maps; empty if unknown."""
    if classes.get('category_ids'):
        return [int(number) for number in classes['category_ids']]
    if 'decode_head' not in cfg.model:
        return []
    count = len(classes.get('classes') or ()) or max(head['num_classes'] for _, head in heads_of(cfg.model))
    # Unless stated otherwise, 0 means unlabelled, as in ADE20K.
    first = int(bool(classes.get('reduce_zero_label', True)))
    return list(range(first, first + count))


def _resizes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if node.get('type') == 'Resize' and node.get('scale'):
            yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _resizes(item)
