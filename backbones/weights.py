"""Strict loading of weights, published or one's own, into a backbone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier
from timm.models import adapt_input_conv
from torch import Tensor

from backbones.records import WEIGHTS
from backbones.serialization import CheckpointError, load_file

if TYPE_CHECKING:
    from backbones.base import DenseBackbone


# Where training scripts put the state dict, and what they put before its keys.
_ENTRIES = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
_PREFIXES = ('module.', '_orig_mod.', 'backbone.', 'model.')


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_pretrained` did.

    Attributes:
        source: What was asked for.
        loaded: Names of the backbone's tensors that were loaded.
        total: Number of the backbone's tensors that a checkpoint must fill; always the number loaded of them.
        new: Names that keep their initial values (output norms, absent from ImageNet weights).
        left_out: Names in the checkpoint that the backbone has no use for (classifier, stages not requested).
        adapted: Names whose input channels were adapted from three.
    """

    source: str
    loaded: tuple[str, ...]
    total: int
    new: tuple[str, ...]
    left_out: tuple[str, ...]
    adapted: tuple[str, ...]

    def __str__(self) -> str:
        details = [
            f'{len(names)} {what}: {_grouped(names)}'
            for what, names in (('new', self.new), ('left out', self.left_out), ('adapted', self.adapted))
            if names
        ]
        suffix = f' ({"; ".join(details)})' if details else ''
        return f'loaded {len(self.loaded)} of {self.total} tensors from {self.source}{suffix}'


def load_pretrained(backbone: DenseBackbone, source: str | Path, *, prefix: str | None = None) -> LoadReport:
    """Load weights into a backbone, all of them or none.

    The classifier and stages that the backbone was built without are left out; output norms that the checkpoint does
    not have keep their values; a first convolution for three channels is adapted to another number of them. Any
    other difference is an error.

    Args:
        backbone: Changed in place, only after everything was checked.
        source: A name in :data:`WEIGHTS`, a URL, or a ``.pth`` or ``.safetensors`` file: a flat state dict, or one
            in an entry ``state_dict``, ``model``, ``state_dict_ema`` or ``model_ema``, its keys plain or behind
            ``backbone.``, ``module.``, ``model.``; official or timm names.
        prefix: Take only the keys behind this prefix, instead of finding it.

    Returns:
        The report.

    Raises:
        CheckpointError: The source cannot be read, or its tensors do not fit; nothing was loaded.
    """
    source = str(source)
    _check_family(backbone, source)
    published = backbone.named_weights(source)
    if published is None:
        published = _strip_prefixes(read_weights(source), source, prefix)
    state = backbone.convert_state_dict(published)
    own = backbone.state_dict()
    left_out = tuple(key for key in state if backbone.leaves_out(key))
    wanted = {key: value for key, value in state.items() if key not in left_out}
    adapted = _adapt_input(backbone, wanted, own)
    differences = _differences(wanted, own)
    if differences:
        raise CheckpointError(
            f'{source!r} does not fit {type(backbone).__name__}: {differences}; nothing was loaded.\n'
            f'{_advice(type(backbone), published)}'
        )
    new = tuple(name for name in own if name not in wanted)
    backbone.load_state_dict({**own, **wanted}, strict=True)
    return LoadReport(source, tuple(wanted), len(own) - len(new), new, left_out, adapted)


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read the weights of a whole network, under the names that the file gives them.

    Args:
        source: As in :func:`load_pretrained`.

    Raises:
        CheckpointError: The source cannot be read, or holds no state dict.
    """
    return _state_dict(load_file(_fetch(str(source))), str(source))


def _check_family(backbone: DenseBackbone, source: str) -> None:
    record = WEIGHTS.get(source)
    families = {base.__name__ for base in type(backbone).__mro__}
    if record is not None and record.family not in families:
        allowed = [name for name, other in WEIGHTS.items() if other.family in families]
        raise CheckpointError(
            f'{source!r} are weights of {record.family}, the backbone is {type(backbone).__name__}.\n'
            f'Name one of {", ".join(allowed) or "its own files"}.'
        )


def _fetch(source: str) -> Path:
    record = WEIGHTS.get(source)
    if record is not None:
        hub = f'or fetch {record.hub_id} from the Hugging Face hub' if record.hub_id else 'or check the address'
        return _download((record.url, *record.mirrors), hub)
    if urlparse(source).scheme in ('http', 'https', 'file'):
        return _download((source,), 'or check the address')
    if not Path(source).exists() and not Path(source).suffix:
        raise CheckpointError(
            f'{source!r} is neither a file nor the name of published weights ({", ".join(WEIGHTS)}).\n'
            'Give a path, a URL, or one of these names.'
        )
    return Path(source)


def _download(urls: Sequence[str], alternative: str) -> Path:
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    paths = [folder / Path(urlparse(url).path).name for url in urls]
    # One process of each machine downloads; the others wait for it.
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not any(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        _download_one_of(urls, paths, alternative)
    barrier()
    return next((path for path in paths if path.exists()), paths[0])


def _download_one_of(urls: Sequence[str], paths: Sequence[Path], alternative: str) -> None:
    failures = []
    for url, path in zip(urls, paths, strict=True):
        try:
            torch.hub.download_url_to_file(url, str(path))
            return
        except OSError as error:  # URLError and HTTPError are OSErrors, too
            failures.append((url, error))
    raise CheckpointError(
        f'{"; ".join(f"{url} could not be downloaded: {error}" for url, error in failures)}.\n'
        f'Download it elsewhere to {paths[0]}, {alternative}, and give the file as checkpoint.'
    ) from failures[0][1]


def _state_dict(content: Any, source: str) -> dict[str, Tensor]:
    entry = next((e for e in _ENTRIES if isinstance(content, Mapping) and isinstance(content.get(e), Mapping)), None)
    state = content if entry is None else content[entry]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        found = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f'{source!r} holds no state dict; found {found}, looked for tensors or an entry {", ".join(_ENTRIES)}.\n'
            'Save one with torch.save(model.state_dict(), FILE).'
        )
    return dict(state)


def _strip_prefixes(state: dict[str, Tensor], source: str, prefix: str | None) -> dict[str, Tensor]:
    if prefix is not None:
        behind = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not behind:
            raise CheckpointError(
                f'{source!r} has no key behind prefix={prefix!r}; its keys begin with {_grouped(state)}.\n'
                'Leave the prefix out to have it found.'
            )
        return behind
    for known in _PREFIXES:
        behind = {key.removeprefix(known): value for key, value in state.items() if key.startswith(known)}
        if behind:
            return _strip_prefixes(behind, source, None)
    return state


def _adapt_input(backbone: DenseBackbone, wanted: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    adapted = []
    for key in (f'{layer}.weight' for layer in backbone.input_layers):
        value, target = wanted.get(key), own.get(key)
        if value is None or target is None or value.ndim != 4 or target.ndim != 4:
            continue
        if value.shape[1] == 3 != target.shape[1] and value.shape[0] == target.shape[0]:
            wanted[key] = adapt_input_conv(target.shape[1], value)
            adapted.append(key)
    return tuple(adapted)


def _differences(wanted: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    missing = [key for key in own if key not in wanted and not key.startswith('out_norm')]
    unexpected = [key for key in wanted if key not in own]
    misshaped = [
        f'{key} {tuple(wanted[key].shape)} instead of {tuple(own[key].shape)}'
        for key in wanted
        if key in own and wanted[key].shape != own[key].shape
    ]
    return '; '.join(
        f'{len(keys)} {what}: {_first(keys)}'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', misshaped))
        if keys
    )


def _advice(family: type[DenseBackbone], published: Mapping[str, Tensor]) -> str:
    own = _fitting_archs(family, published)
    if own:
        return f'It fits arch {" or ".join(map(repr, own))} as published.'
    others = [f'{other.__name__} {arch}' for other in family.families() for arch in _fitting_archs(other, published)]
    if others:
        return f'It looks like {" or ".join(others)}: take that backbone, or another file.'
    return 'Check that the file is of this network.'


def _fitting_archs(family: Any, published: Mapping[str, Tensor]) -> list[str]:
    if not family.ARCHS:
        return []
    ignored = ('out_norm', *family.CLASSIFIER_PREFIXES)
    converted = family.convert_state_dict(published)
    shapes = {key: value.shape for key, value in converted.items() if not key.startswith(ignored)}
    parts = {_part(key) for key in shapes}  # a backbone without its last stages is recognised as well
    return [
        name
        for name in family.ARCHS
        if shapes == {key: shape for key, shape in _shapes(family, name).items() if _part(key) in parts}
    ]


@cache
def _shapes(family: Any, arch: str) -> dict[str, torch.Size]:
    with torch.device('meta'):
        return {key: value.shape for key, value in family(arch).state_dict().items()}


def _part(key: str) -> str:
    return '.'.join(key.split('.')[: 2 if key.startswith(('stages.', 'body.')) else 1])


def _grouped(names: Iterable[str]) -> str:
    counts = Counter(_part(name) for name in names)
    return _first([f'{group} ({count})' if count > 1 else group for group, count in counts.items()])


def _first(names: list[str], most: int = 5) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
