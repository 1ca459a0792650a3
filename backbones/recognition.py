"""Guess which network a checkpoint that does not fit belongs to."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor


def advise(family: type, published: Mapping[str, Tensor]) -> str:
    """Say in one line which backbone a checkpoint would fit.

    Args:
        family: Class of the backbone that it does not fit.
        published: The checkpoint, under its original names.
    """
    own = _fitting_archs(family, published)
    if own:
        return f'It fits arch {" or ".join(map(repr, own))} as published: use that arch, without changes.'
    others = [f'{other.__name__} {arch}' for other in _relatives(family) for arch in _fitting_archs(other, published)]
    if others:
        return f'It looks like {" or ".join(others)}: use that backbone, or another file.'
    return 'Check that the file belongs to this network.'


def part_of(key: str) -> str:
    """Return the part of a network that a tensor belongs to: ``'stages.2'``, ``'stem'``."""
    return '.'.join(key.split('.')[: 2 if key.startswith(('stages.', 'body.')) else 1])


def _relatives(family: type) -> list[Any]:
    """Return every class with its own table of archs below the ancestor that declares ``ARCHS``."""
    ancestors = [base for base in family.__mro__ if hasattr(base, 'ARCHS')]
    return [cls for cls in _descendants(ancestors[-1]) if vars(cls).get('ARCHS')] if ancestors else []


def _descendants(cls: Any) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _fitting_archs(family: Any, published: Mapping[str, Tensor]) -> list[str]:
    if not family.ARCHS:
        return []
    ignored = ('out_norm', *family.CLASSIFIER_PREFIXES)
    converted = family.convert_state_dict(published)
    shapes = {key: value.shape for key, value in converted.items() if not key.startswith(ignored)}
    parts = {part_of(key) for key in shapes}  # recognises a backbone without its last stages, too
    return [
        name
        for name in family.ARCHS
        if shapes == {key: shape for key, shape in _shapes(family, name).items() if part_of(key) in parts}
    ]


@cache
def _shapes(family: Any, arch: str) -> dict[str, torch.Size]:
    with torch.device('meta'):
        return {key: value.shape for key, value in family(arch).state_dict().items()}
