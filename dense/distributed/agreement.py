"""Compares, at the start of a run, what each of its processes was given, and refuses a run whose processes differ.

They would train on silently, on other data or for another number of steps, or one would wait for the others for ever.
"""

import hashlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed

from dense.errors import UserError

Facts = Mapping[str, str]  # name of a fact -> value
OWN_PACKAGES = ('backbones', 'dense')
LIBRARIES = ('torch', 'torchvision', 'timm', 'numpy', 'mmengine', 'mmdet', 'mmsegmentation')
# Where things lie may differ between machines.
PLACES = {'work_dir', 'data_root', 'filename', 'load_from', 'resume', 'cfg_options', 'launcher', 'experiment_name'}
ADDRESS = re.compile(r' at 0x[0-9a-f]+')
MAX_NAMED, MAX_LENGTH = 3, 60


def check_agreement(kinds: Mapping[str, Facts]) -> None:
    """Check that all processes of a run have the same facts. Every process has to call it.

    Args:
        kinds: Kind, such as ``'config'``, -> facts of this process.

    Raises:
        UserError: They differ. All processes raise it, with the same text.
    """
    if get_world_size() == 1:
        return
    hashes: list[dict[str, str]] = _gathered({kind: _hash(facts) for kind, facts in kinds.items()})
    for kind, facts in kinds.items():
        others = [rank for rank, found in enumerate(hashes) if found[kind] != hashes[0][kind]]
        if others:
            # Only now: a config is long, and there may be a thousand processes.
            everyone: list[Facts] = _gathered(dict(facts))
            difference = _difference(everyone[0], everyone[others[0]])
            raise UserError(
                f'{_named(others)} from rank 0 in the {kind}: {difference}',
                'start every process by the same command, with the same copy of the code and of the data',
            )


def config_facts(cfg: Config) -> Facts:
    """Return the values of a config, without those that may differ between machines.

    Args:
        cfg: Config of a run.
    """
    content = cfg.to_dict()
    roots = sorted({str(root).rstrip('/') for root in _values_of(content, 'data_root') if root}, key=len, reverse=True)
    return {key: _without(roots, ADDRESS.sub('', repr(value))) for key, value in _leaves(content)}


def code_facts(cfg: Config) -> Facts:
    """Return the versions of the libraries, and hashes of the project's own files and those that a config imports.

    Args:
        cfg: Config of a run.
    """
    imported = (cfg.get('custom_imports') or {}).get('imports') or []
    names = [*OWN_PACKAGES, *([imported] if isinstance(imported, str) else imported)]
    files = {name: value for module in _modules(names) for name, value in _hashes_of(module)}
    return {'python': platform.python_version(), **_versions(), **files}


def data_facts(split: str, loader: Any) -> Facts:
    """Return how many samples and steps a data loader has, the classes, and hashes of the samples' names.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        loader: The data loader.
    """
    dataset = loader.dataset
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    facts = {
        'number of samples': len(dataset),
        'classes': ', '.join(map(str, classes)),
        'hash of the names': _hash_of_names(dataset),
        'batch size': loader.batch_sampler.batch_size if loader.batch_size is None else loader.batch_size,
        'steps per epoch': len(loader),
    }
    return {f'{split} {name}': str(value) for name, value in facts.items()}


def _hash_of_names(dataset: Any) -> str:
    found = hashlib.sha256()
    for index in range(len(dataset)) if hasattr(dataset, 'get_data_info') else ():
        info = dataset.get_data_info(index)
        name = info.get('img_path')
        found.update(f'{Path(name).name if name else ""}\n{len(info.get("instances") or ())}\n'.encode())
    return found.hexdigest()[:12]


def _gathered(own: Any) -> list[Any]:
    found: list[Any] = [None] * get_world_size()
    distributed.all_gather_object(found, own)
    return found


def _hash(facts: Facts) -> str:
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()


def _named(ranks: Sequence[int]) -> str:
    several = len(ranks) > 1
    more = f' and {len(ranks) - MAX_NAMED} more' if len(ranks) > MAX_NAMED else ''
    return f'rank{"s" * several} {", ".join(map(str, ranks[:MAX_NAMED]))}{more} {"differ" if several else "differs"}'


def _difference(first: Facts, other: Facts) -> str:
    names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
    parts = [f'{name} is {_short(other, name)} and not {_short(first, name)}' for name in names[:MAX_NAMED]]
    more = f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''
    return f'{", ".join(parts)}{more}'


def _short(facts: Facts, name: str) -> str:
    value = facts.get(name, 'absent')
    return value if len(value) <= MAX_LENGTH else f'{value[:MAX_LENGTH]}...'


def _leaves(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and the values of a config, without places."""
    if isinstance(node, dict) and node:
        for key, item in node.items():
            if key not in PLACES:
                yield from _leaves(item, f'{path}.{key}' if path else str(key))
    elif isinstance(node, list | tuple) and node:
        for number, item in enumerate(node):
            yield from _leaves(item, f'{path}.{number}')
    else:
        yield path, node


def _values_of(node: Any, name: str) -> Iterator[Any]:
    if isinstance(node, dict):
        for key, item in node.items():
            yield from [item] if key == name else _values_of(item, name)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _values_of(item, name)


def _without(roots: Sequence[str], text: str) -> str:
    for root in roots:
        text = text.replace(root, '')
    return text


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _modules(names: Sequence[str]) -> Iterator[ModuleType]:
    yield from (sys.modules[name] for name in dict.fromkeys(names) if name in sys.modules)


def _hashes_of(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the name and the hash of each file of a module or package."""
    if module.__file__ is None:
        return
    file = Path(module.__file__)
    root = file.parent if file.name == '__init__.py' else None
    for path in sorted(root.rglob('*.py')) if root else [file]:
        name = f'{module.__name__}/{path.relative_to(root).as_posix()}' if root else module.__name__
        yield name, hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@HOOKS.register_module()
class SameDataHook(Hook):
    """Refuse a run whose processes found different data."""

    priority = 'VERY_HIGH'

    def before_run(self, runner: Any) -> None:
        """Compare the data sets and the lengths of the loops.

        Raises:
            UserError: They differ.
        """
        if get_world_size() == 1:
            return
        loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
        facts: dict[str, str] = {}
        for split, loop in loops.items():
            if hasattr(loop, 'dataloader'):
                facts |= data_facts(split, loop.dataloader)
        check_agreement({'data': facts})
