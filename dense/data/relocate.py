"""Points a config at another copy of its data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dense.data.config_queries import SPLITS, datasets_of
from dense.errors import UserError

HOLDERS = (*(f'{split}_dataloader' for split in SPLITS), *(f'{split}_evaluator' for split in SPLITS))


def replace_data_root(cfg: Config, root: str) -> None:
    """Point every data set and evaluator of a config at another copy of the data, in place.

    Args:
        cfg: Config of a run.
        root: Folder of the copy.

    Raises:
        UserError: The config has no data root, or more than one.
    """
    roots = _roots(cfg)
    if len(roots) != 1:
        raise UserError(
            f'--data-root replaces one data root, but the config has {len(roots)}: {", ".join(roots) or "none"}',
            'set each with --cfg-options, for example train_dataloader.dataset.data_root=FOLDER',
        )
    _move(cfg, roots[0], root)


def find_data(cfg: Config, project: Path) -> None:
    """Make those data roots absolute that exist in the project but not in the current folder, in place.

    Args:
        cfg: Config of a run.
        project: Folder of the project.
    """
    for root in _roots(cfg):
        if not Path(root).exists() and (project / root).exists():
            _move(cfg, root, str(project / root))


def _roots(cfg: Config) -> list[str]:
    found = [str(data.get('data_root') or '').rstrip('/') for split in SPLITS for data in datasets_of(cfg, split)]
    return sorted({root for root in found if root})


def _move(cfg: Config, old: str, new: str) -> None:
    def moved(text: str) -> str:
        if text.rstrip('/') == old:
            return new
        return str(Path(new) / text.removeprefix(f'{old}/')) if text.startswith(f'{old}/') else text

    for key in HOLDERS:
        if cfg.get(key) is not None:
            _replace_texts(cfg[key], moved)
    if 'data_root' in cfg:
        cfg.data_root = moved(cfg.data_root)


def _replace_texts(node: Any, change: Callable[[str], str]) -> None:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        if isinstance(value, str):
            node[key] = change(value)
        else:
            _replace_texts(value, change)
