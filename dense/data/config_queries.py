"""Finds the data sets and the heads in a config."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

SPLITS = ('train', 'val', 'test')
NOT_HEADS = ('backbone', 'rpn_head')  # the region proposal network tells object from background, whatever the classes


def datasets_of(cfg: Config, split: str) -> list[dict[str, Any]]:
    """Return the configs of a split's data sets, without the wrappers around them.

    Args:
        cfg: Config of a run.
        split: ``'train'``, ``'val'`` or ``'test'``.
    """
    loader = cfg.get(f'{split}_dataloader') or {}
    return list(_innermost(loader.get('dataset')))


def _innermost(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list | tuple):
        for item in node:
            yield from _innermost(item)
    elif isinstance(node, dict):
        inner = node.get('dataset') or node.get('datasets')
        if inner is None:
            yield node
        else:
            yield from _innermost(inner)


def dataset_class(dataset: dict[str, Any], scope: str | None) -> Any:
    """Return the class that a data set's config names, or None if it is unknown.

    Args:
        dataset: Config of the data set.
        scope: Default scope of the config, such as ``'mmdet'``.
    """
    named = dataset.get('type')
    if not isinstance(named, str):
        return named
    with DefaultScope.overwrite_default_scope(scope), DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(named)


def heads_of(model: Any, path: str = 'model') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the dotted name and the config of every part of a model that has a number of classes.

    Args:
        model: Config of the model, or of a part of it.
        path: Dotted name of the part.
    """
    if isinstance(model, list | tuple):
        for place, item in enumerate(model):
            yield from heads_of(item, f'{path}.{place}')
    elif isinstance(model, dict):
        if 'num_classes' in model:
            yield path, model
        for key, item in model.items():
            if key not in NOT_HEADS:
                yield from heads_of(item, f'{path}.{key}')
