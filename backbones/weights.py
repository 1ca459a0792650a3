"""Strict loading of weights, published or your own, into a backbone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from timm.models import adapt_input_conv
from torch import Tensor

from backbones.download import cached_path, download, download_from_hub, locate
from backbones.recognition import advise, part_of
from backbones.records import WEIGHTS, PublishedWeights
from backbones.serialization import CheckpointError, load_file, one_line
from backbones.soundness import describe_faults, describe_kinds

# Entries in which training scripts save the state dict, and prefixes that they add to its keys.
ENTRIES = ('state_dict', 'model', 'state_dict_ema', 'model_ema')
_PREFIXES = ('module.', '_orig_mod.', 'backbone.', 'model.')


class TakesWeights(Protocol):
    """What :func:`load_pretrained` needs from a backbone; :class:`backbones.base.DenseBackbone` documents each
    member."""

    @property
    def input_layers(self) -> tuple[str, ...]: ...

    def named_weights(self, source: str) -> Mapping[str, Tensor] | None: ...

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def leaves_out(self, name: str) -> bool: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any: ...


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_pretrained` did.

    Attributes:
        source: The source that was requested.
        loaded: Names of the backbone's tensors that were loaded.
        total: Number of the backbone's tensors that a checkpoint must fill; always the number that were loaded.
        new: Names that keep their initial values (output norms, which ImageNet weights lack).
        left_out: Names in the checkpoint that the backbone does not need (classifier, stages not requested).
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


def load_pretrained(backbone: TakesWeights, source: str | Path, *, prefix: str | None = None) -> LoadReport:
    """Load weights into a backbone, all of them or none.

    The classifier, and stages that the backbone was built without, are left out. Output norms that are missing from the
    checkpoint keep their values. A first convolution for three channels is adapted to the backbone's number of
    channels. Any other difference is an error.

    Args:
        backbone: Changed in place, but only after everything has been checked.
        source: A name in :data:`WEIGHTS`, a URL, ``hf-hub:OWNER/NAME`` (see :func:`backbones.download.locate`), or a
            ``.pth`` or ``.safetensors`` file. The file holds a state dict, directly or in an entry ``state_dict``,
            ``model``, ``state_dict_ema`` or ``model_ema``, with official or timm names. The keys may have the prefix
            ``backbone.``, ``module.`` or ``model.``.
        prefix: Use only the keys with this prefix, instead of detecting the prefix.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: The source cannot be read, or its tensors do not fit. Then nothing is loaded.
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
            f'{advise(type(backbone), published)}'
        )
    _refuse(describe_faults(wanted, own), source)
    new = tuple(name for name in own if name not in wanted)
    backbone.load_state_dict({**own, **wanted}, strict=True)
    return LoadReport(source, tuple(wanted), len(own) - len(new), new, left_out, adapted)


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read the weights of a whole network, under the names in the file.

    Args:
        source: As in :func:`load_pretrained`.

    Raises:
        CheckpointError: The source cannot be read, or holds no state dict.
    """
    return _state_dict(load_file(_fetch(str(source))), str(source))


def _check_family(backbone: TakesWeights, source: str) -> None:
    record = WEIGHTS.get(source)
    families = {base.__name__ for base in type(backbone).__mro__}
    if record is not None and record.family not in families:
        allowed = [name for name, other in WEIGHTS.items() if other.family in families]
        raise CheckpointError(
            f'{source!r} has weights of {record.family}, but the backbone is {type(backbone).__name__}.\n'
            f'Name one of {", ".join(allowed) or "its own files"}.'
        )


def _fetch(source: str) -> Path:
    record = WEIGHTS.get(source)
    if record is not None:
        return _fetch_published(record)
    if not source.strip():
        raise CheckpointError(
            f'The checkpoint is an empty text.\nGive a path, a URL, hf-hub:OWNER/NAME, or one of {", ".join(WEIGHTS)}.'
        )
    path = locate(source)
    if not os.path.exists(path) and not path.suffix:  # a Path raises where the name is too long
        raise CheckpointError(
            f'{source!r} is neither a file nor a name of published weights ({", ".join(WEIGHTS)}).\n'
            'Give a path, a URL, hf-hub:OWNER/NAME, or one of these names.'
        )
    return path


def _fetch_published(record: PublishedWeights) -> Path:
    urls = (record.url, *record.mirrors)
    for path in map(cached_path, urls):
        if path.is_file():
            return path
    failures = []
    for url in urls:
        try:
            return download(url, sha256=record.sha256)
        except CheckpointError as error:
            failures.append(error)
    if record.hub_id:
        try:
            return download_from_hub(record.hub_id)
        except CheckpointError as error:
            failures.append(error)
    raise CheckpointError(
        f'{"; ".join(str(failure).partition(chr(10))[0].rstrip(".") for failure in failures)}.\n'
        f'Download one of these elsewhere and give the file as checkpoint, or save {record.url} as '
        f'{cached_path(record.url)}.'
    ) from failures[0]


def _state_dict(content: Any, source: str) -> dict[str, Tensor]:
    entry = next((e for e in ENTRIES if isinstance(content, Mapping) and isinstance(content.get(e), Mapping)), None)
    state = content if entry is None else content[entry]
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state.items())):
        found = sorted(map(one_line, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f'{source!r} holds no state dict: found {found}, expected tensors or an entry {", ".join(ENTRIES)}.\n'
            'Save one with torch.save(model.state_dict(), FILE).'
        )
    _refuse(describe_kinds(state), source)
    return dict(state)


def _is_entry(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(value, Tensor) and isinstance(name, str)


def _refuse(faults: str, source: str) -> None:
    if faults:
        raise CheckpointError(
            f'{source!r} holds {faults}; nothing was loaded.\n'
            'Give another file, or save the weights again as finite floats: torch.save(model.state_dict(), FILE).'
        )


def _strip_prefixes(state: dict[str, Tensor], source: str, prefix: str | None) -> dict[str, Tensor]:
    if prefix is not None:
        behind = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not behind:
            raise CheckpointError(
                f'{source!r} has no key with prefix={prefix!r}; its keys begin with {_grouped(state)}.\n'
                'Leave the prefix out to have it detected.'
            )
        return behind
    for known in _PREFIXES:
        behind = {key.removeprefix(known): value for key, value in state.items() if key.startswith(known)}
        if behind:
            return _strip_prefixes(behind, source, None)
    return state


def _adapt_input(backbone: TakesWeights, wanted: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    adapted = []
    for key in (f'{layer}.weight' for layer in backbone.input_layers):
        value, target = wanted.get(key), own.get(key)
        if value is None or target is None or value.ndim != 4 or target.ndim != 4:
            continue
        # Only a kernel of the right size: a file of a few bytes can declare one that would fill the memory.
        if value.shape[1] == 3 != target.shape[1] and value[:, 0].shape == target[:, 0].shape:
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


def _grouped(names: Iterable[str]) -> str:
    counts = Counter(part_of(name) for name in names)
    return _first([f'{group} ({count})' if count > 1 else group for group, count in counts.items()])


def _first(names: list[str], most: int = 5) -> str:
    return ', '.join(map(one_line, names[:most])) + (f' and {len(names) - most} more' if len(names) > most else '')
