"""Config keys that a user types: on the command line, or at the top of a config file."""

import ast
import copy
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from dense.engine.loaders import LOADER_KEYS
from dense.errors import UserError, did_you_mean

RUN_KEYS = {name for name in inspect.signature(Runner.__init__).parameters if name not in ('self', 'cfg')}
OTHER_KEYS = {
    'custom_imports', 'model_wrapper_cfg', 'compile', 'tta_model', 'tta_pipeline', 'data_root', 'max_unreadable',
    'save_every', 'on_nonfinite', 'sync_bn', 'find_unused_parameters', 'winograd', 'cfg_options',
}  # fmt: skip
DIST_KEYS = {'backend', 'timeout', 'init_backend'}  # how the processes of a run are connected
WORDS = {'true': True, 'false': False, 'none': None}


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs: numbers, ``True``, ``None``, lists, dicts in Python's notation, text otherwise.

    Args:
        pairs: For example ``['model.backbone.drop_path_rate=0.1', 'train_cfg.max_iters=100']``.

    Raises:
        UserError: A pair has no ``=``.
    """
    options = {}
    for pair in pairs:
        key, sign, value = pair.partition('=')
        if not sign or not key:
            raise UserError(f'cannot read the config option {pair!r}', 'write it as key=value, without spaces around =')
        options[key] = _parse_value(value)
    return options


def _parse_value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) and not text.startswith('(') else value


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check that dotted keys lead to a place in the config. The last part may be new where something is built from it.

    Args:
        cfg: Config of a run.
        options: Dotted keys; numbers count the items of lists.

    Raises:
        UserError: A key leads nowhere.
    """
    for key in options:
        node: Any = cfg
        parts = key.split('.')
        for depth, part in enumerate(parts):
            if isinstance(node, list | tuple):
                if not _is_index(part) or int(part) >= len(node):
                    raise UserError(
                        f'unknown config key {key}: {part!r} is not an index of a list of {len(node)}',
                        f'use 0 to {len(node) - 1}',
                    )
                node = node[int(part)]
                continue
            if not isinstance(node, Mapping | Config):
                raise UserError(
                    f'unknown config key {key}: {".".join(parts[:depth])} is {node!r} and has no parts',
                    f'set {".".join(parts[:depth])} itself',
                )
            if part not in node:
                _check_new(key, parts, depth, node)
                break
            node = node[part]


def _check_new(key: str, parts: list[str], depth: int, node: Any) -> None:
    is_last = depth == len(parts) - 1
    if depth == 0 and parts[0] in RUN_KEYS | OTHER_KEYS:
        return
    # Whatever is built checks its own arguments.
    if depth > 0 and is_last and 'type' in node:
        return
    is_loader = depth == 1 and parts[0].endswith('_dataloader')
    if is_loader and is_last and parts[1] in LOADER_KEYS:
        return
    if parts[:depth] == ['env_cfg', 'dist_cfg'] and is_last and parts[2] in DIST_KEYS:
        return
    place = '.'.join(parts[:depth]) or 'the config'
    allowed = set(node.keys()) | (RUN_KEYS if depth == 0 else LOADER_KEYS if is_loader else set())
    raise UserError(f'unknown config key {key}: {place} has no {parts[depth]!r}', did_you_mean(parts[depth], allowed))


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set keys of a config, in place; a dict replaces what was there.

    Args:
        cfg: Config of a run.
        options: Dotted keys that :func:`check_options` accepted, and their values.

    Raises:
        UserError: An option replaces what a later one belongs to.
    """
    new = {key for key in options if key.split('.')[0] not in cfg}  # whole branches that the config lacks
    for key, value in options.items():
        *parents, last = key.split('.')
        node: Any = cfg
        for part in parents:
            if key in new and isinstance(node, dict | Config) and part not in node:
                node[part] = ConfigDict()
            place = _place(node, part, key, may_be_new=False)
            # Validation and test data are often one object; an option for one must not change the other.
            node[place] = copy.copy(node[place])
            node = node[place]
        node[_place(node, last, key, may_be_new=True)] = ConfigDict(value) if isinstance(value, dict) else value


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _place(node: Any, part: str, key: str, *, may_be_new: bool) -> int | str:
    """Return the index or key of a part; an earlier option may have replaced what it lies in."""
    if isinstance(node, list) and _is_index(part) and int(part) < len(node):
        return int(part)
    if isinstance(node, dict | Config) and (may_be_new or part in node):
        return part
    raise UserError(
        f'the config option {key} has no place in what the options before it set: {node!r}',
        'set the whole value in one option, or leave one of them out',
    )


def check_top_level(cfg: Config) -> None:
    """Find misspelt top-level keys. A config may define its own names, unless they look like a missing key of a run.

    Args:
        cfg: Config of a run.

    Raises:
        UserError: A key is nearly one that a run reads and that the config lacks.
    """
    lacking = sorted(key for key in RUN_KEYS | OTHER_KEYS if key not in cfg)
    for key in cfg:
        near = difflib.get_close_matches(key, lacking, n=1, cutoff=0.85) if key not in RUN_KEYS | OTHER_KEYS else []
        if near:
            raise UserError(f'unknown config key {key!r}', f'did you mean {near[0]!r}?')
