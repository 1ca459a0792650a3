"""Wrappers that add one thing to a data set."""

from collections.abc import Iterator
from typing import Any

from mmengine.registry import DATASETS


class DatasetView:
    """Base of the wrappers: builds the data set, and forwards every attribute that a wrapper does not have itself.

    Args:
        dataset: The data set's config, or the data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # `dataset` itself is looked up here only while an object is being unpickled and is still empty. The methods
        # that copy or pickle the inner data set do not suit the wrapper.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        """The transforms of the innermost data set; hooks replace them during a run."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, transforms: Any) -> None:
        self.dataset.pipeline = transforms


def innermost(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers, also inside those that join several.

    Args:
        dataset: A data set.
    """
    inner = vars(dataset).get('dataset', vars(dataset).get('datasets'))
    if inner is None:
        yield dataset
    for part in inner if isinstance(inner, list | tuple) else [] if inner is None else [inner]:
        yield from innermost(part)
