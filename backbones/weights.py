"""Strict loading of weights, published or one's own, into a backbone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    state = _state_dict(load_file(_fetch(source)), source)
    state = type(backbone).convert_state_dict(_strip_prefixes(state, source, prefix))
    own = backbone.state_dict()
    wanted, left_out = _select(backbone, state)
    adapted = _adapt_input(wanted, own)
    _check_fit(backbone, wanted, own, source)
    new = tuple(name for name in own if name not in wanted)
    backbone.load_state_dict({**own, **wanted}, strict=True)
    return LoadReport(source, tuple(wanted), len(own) - len(new), new, left_out, adapted)


def _check_family(backbone: DenseBackbone, source: str) -> None:
    record = WEIGHTS.get(source)
    if record is not None and record.family != type(backbone).__name__:
        allowed = [name for name, other in WEIGHTS.items() if other.family == type(backbone).__name__]
        raise CheckpointError(
            f'{source!r} are weights of {record.family}, the backbone is {type(backbone).__name__}.\n'
            f'Name one of {", ".join(allowed) or "its own files"}.'
        )


def _fetch(source: str) -> Path:
    if source in WEIGHTS:
        return _download(WEIGHTS[source].url, f'or fetch {WEIGHTS[source].hub_id} from the Hugging Face hub')
    if urlparse(source).scheme in ('http', 'https', 'file'):
        return _download(source, 'or check the address')
    if not Path(source).exists() and not Path(source).suffix:
        raise CheckpointError(
            f'{source!r} is neither a file nor the name of published weights ({", ".join(WEIGHTS)}).\n'
            'Give a path, a URL, or one of these names.'
        )
    return Path(source)


def _download(url: str, alternative: str) -> Path:
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    # One process of each machine downloads; the others wait for it.
    if int(os.environ.get('LOCAL_RANK', 0)) == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except OSError as error:  # URLError and HTTPError are OSErrors, too
            raise CheckpointError(
                f'{url} could not be downloaded: {error}.\n'
                f'Download it elsewhere to {path}, {alternative}, and give the file as checkpoint.'
            ) from error
    barrier()
    return path


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


def _select(backbone: DenseBackbone, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    own = backbone.state_dict().keys()
    num_stages = len(backbone.stages)

    def useless(key: str) -> bool:
        parts = key.split('.')
        beyond = parts[0] == 'stages' and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) >= num_stages
        other_norm = parts[0].startswith('out_norm') and key not in own
        return beyond or other_norm or key.startswith(backbone.CLASSIFIER_PREFIXES)

    left_out = tuple(key for key in state if useless(key))
    return {key: value for key, value in state.items() if key not in left_out}, left_out


def _adapt_input(wanted: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    adapted = []
    for key, value in wanted.items():
        target = own.get(key)
        if not key.startswith('stem.') or target is None or target.ndim != 4 or value.ndim != 4:
            continue
        if value.shape[1] == 3 != target.shape[1] and value.shape[0] == target.shape[0]:
            wanted[key] = adapt_input_conv(target.shape[1], value)
            adapted.append(key)
    return tuple(adapted)


def _check_fit(backbone: DenseBackbone, wanted: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    missing = [key for key in own if key not in wanted and not key.startswith('out_norm')]
    unexpected = [key for key in wanted if key not in own]
    misshaped = [
        f'{key} {tuple(wanted[key].shape)} instead of {tuple(own[key].shape)}'
        for key in wanted
        if key in own and wanted[key].shape != own[key].shape
    ]
    if not (missing or unexpected or misshaped):
        return
    differences = '; '.join(
        f'{len(keys)} {what}: {_first(keys)}'
        for what, keys in (('missing', missing), ('unexpected', unexpected), ('of another shape', misshaped))
        if keys
    )
    fitting = _fitting_archs(backbone, wanted)
    remedy = (
        f'It fits arch {" or ".join(map(repr, fitting))}.' if fitting else 'Check that the file is of this network.'
    )
    raise CheckpointError(
        f'{source!r} does not fit {type(backbone).__name__}: {differences}; nothing was loaded.\n{remedy}'
    )


def _fitting_archs(backbone: DenseBackbone, wanted: Mapping[str, Tensor]) -> list[str]:
    shapes = {key: value.shape for key, value in wanted.items() if not key.startswith('out_norm')}
    family: Any = type(backbone)
    fitting = []
    for name in family.ARCHS:
        with torch.device('meta'):
            candidate = family(name, out_indices=backbone.out_indices).state_dict()
        if shapes == {key: value.shape for key, value in candidate.items()}:
            fitting.append(name)
    return fitting


def _grouped(names: Iterable[str]) -> str:
    counts = Counter('.'.join(name.split('.')[: 2 if name.startswith('stages.') else 1]) for name in names)
    return _first([f'{group} ({count})' if count > 1 else group for group, count in counts.items()])


def _first(names: list[str], most: int = 5) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
