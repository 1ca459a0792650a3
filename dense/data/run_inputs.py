"""What a run reads from its config, found once: data sets, heads, and the step that it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dense.data.config_queries import SPLITS, dataset_class, datasets_of, heads_of


@dataclass(frozen=True)
class DatasetConfig:
    """The config of one data set, without the wrappers around it.

    Attributes:
        split: ``'train'``, ``'val'`` or ``'test'``.
        config: Part of the run's config, not a copy.
        kind: The class that it names, or None if unknown.
    """

    split: str
    config: dict[str, Any]
    kind: Any

    @property
    def root(self) -> str:
        """Folder of the data set; empty if the config names none."""
        return str(self.config.get('data_root') or '')

    @property
    def ann_file(self) -> Path | None:
        """Annotation file, or None."""
        name = self.config.get('ann_file')
        return Path(self.root) / name if name else None

    @property
    def folders(self) -> dict[str, Path]:
        """Key in ``data_prefix`` -> folder."""
        prefixes = self.config.get('data_prefix') or {}
        return {key: Path(self.root) / prefix for key, prefix in prefixes.items() if prefix}


@dataclass(frozen=True)
class HeadConfig:
    """The config of a part of the model that has a number of classes.

    Attributes:
        path: Dotted name in the run's config, for example ``'model.decode_head'``.
        config: Part of the run's config, not a copy.
    """

    path: str
    config: dict[str, Any]

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None if the data determines it."""
        return self.config['num_classes']


@dataclass(frozen=True)
class Start:
    """The state that a run starts from: completed epochs and steps, 0 for a new run."""

    epoch: int = 0
    iter: int = 0


@dataclass(frozen=True)
class RunInputs:
    """What a run reads.

    Attributes:
        datasets: Those of the splits that the run uses, in the order of the splits.
        heads: Parts of the model with a number of classes.
        options: Dotted keys that were set by hand, on top of the config file.
        start: Where the run starts.
    """

    datasets: tuple[DatasetConfig, ...]
    heads: tuple[HeadConfig, ...]
    options: tuple[str, ...] = ()
    start: Start = Start()

    @classmethod
    def read(cls, cfg: Config, splits: Sequence[str] = SPLITS, *, start: Start | None = None) -> 'RunInputs':
        """Read a config.

        Args:
            cfg: Config of a run.
            splits: Which data sets to read.
            start: Where the run starts; by default at its beginning.
        """
        scope = cfg.get('default_scope')
        datasets = [
            DatasetConfig(split, dataset, dataset_class(dataset, scope))
            for split in splits
            for dataset in datasets_of(cfg, split)
        ]
        heads = [HeadConfig(path, head) for path, head in heads_of(cfg.get('model'))]
        return cls(tuple(datasets), tuple(heads), tuple(cfg.get('cfg_options') or ()), start or Start())

    @property
    def num_classes(self) -> int | None:
        """The largest number of classes of a head, or None without heads."""
        return max((head.num_classes for head in self.heads if head.num_classes is not None), default=None)

    def is_set_by_hand(self, key: str) -> bool:
        """Tell whether a dotted key, or a dict that holds it, was set by hand."""
        return any(key == option or key.startswith(f'{option}.') for option in self.options)
