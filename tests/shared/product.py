"""Lists what the product contains, so that a suite notices when something new has no case."""

from pathlib import Path

import timm

import backbones
from backbones.base import DenseBackbone

PROJECT = Path(__file__).resolve().parents[2]
BACKBONES: list[type[DenseBackbone]] = [getattr(backbones, name) for name in backbones.__all__]
FAMILIES = [family for family in BACKBONES if family.ARCHS]  # all but the one that takes any network of timm
ARCHS = [(family, arch) for family in FAMILIES for arch in family.ARCHS]
COMMANDS = sorted(path.stem for path in (PROJECT / 'tools').glob('[!_]*.py'))


def names_of(archs: list[tuple[type, str]]) -> set[tuple[str, str]]:
    """Pairs of family and arch, by the family's name."""
    return {(family.__name__, arch) for family, arch in archs}


def in_timm() -> dict[tuple[str, str], str]:
    """Family and arch of every network that timm has too -> what timm calls it."""
    family_in_timm = {'InceptionNeXt': 'inception_next'}
    names = {(family, arch): f'{family_in_timm.get(family, family.lower())}_{arch}' for family, arch in names_of(ARCHS)}
    return {key: name for key, name in names.items() if timm.is_model(name)}
