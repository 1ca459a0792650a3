"""Weights that the papers' authors released, as records: where they are, what they are, what they reach."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that a paper's authors released.

    Attributes:
        family: Class that they belong to.
        arch: Name in that class's ``ARCHS``.
        url: The authors' file.
        hub_id: The same weights as timm publishes them on the Hugging Face hub.
        num_params: Parameters of the whole classifier.
        top1: ImageNet-1K validation accuracy in percent, as published.
        resolution: Side of the square crop that ``top1`` was measured at, in pixels.
        recipe: How they were trained.
        licence: SPDX name.
    """

    family: str
    arch: str
    url: str
    hub_id: str
    num_params: int
    top1: float
    resolution: int
    recipe: str
    licence: str


_INCEPTIONNEXT = 'https://github.com/sail-sg/inceptionnext/releases/download/model/'
_300_EPOCHS = 'ImageNet-1K, 300 epochs, AdamW, batch 4096, lr 4e-3 (Table 9)'

# Accuracies: Table 4 of arXiv:2303.16900v3.
WEIGHTS: Mapping[str, PublishedWeights] = {
    'inceptionnext_atto': PublishedWeights(
        family='InceptionNeXt',
        arch='atto',
        url=_INCEPTIONNEXT + 'inceptionnext_atto.pth',
        hub_id='timm/inception_next_atto.sail_in1k',
        num_params=4_156_520,
        top1=75.3,
        resolution=224,
        recipe='ImageNet-1K, 450 epochs, AdamW, batch 1280, lr 1e-3 (Table 9)',
        licence='Apache-2.0',
    ),
    'inceptionnext_tiny': PublishedWeights(
        family='InceptionNeXt',
        arch='tiny',
        url=_INCEPTIONNEXT + 'inceptionnext_tiny.pth',
        hub_id='timm/inception_next_tiny.sail_in1k',
        num_params=28_055_680,
        top1=82.3,
        resolution=224,
        recipe=_300_EPOCHS,
        licence='Apache-2.0',
    ),
    'inceptionnext_small': PublishedWeights(
        family='InceptionNeXt',
        arch='small',
        url=_INCEPTIONNEXT + 'inceptionnext_small.pth',
        hub_id='timm/inception_next_small.sail_in1k',
        num_params=49_374_016,
        top1=83.5,
        resolution=224,
        recipe=_300_EPOCHS,
        licence='Apache-2.0',
    ),
    'inceptionnext_base': PublishedWeights(
        family='InceptionNeXt',
        arch='base',
        url=_INCEPTIONNEXT + 'inceptionnext_base.pth',
        hub_id='timm/inception_next_base.sail_in1k',
        num_params=86_672_136,
        top1=84.0,
        resolution=224,
        recipe=_300_EPOCHS,
        licence='Apache-2.0',
    ),
    'inceptionnext_base_384': PublishedWeights(
        family='InceptionNeXt',
        arch='base',
        url=_INCEPTIONNEXT + 'inceptionnext_base_384.pth',
        hub_id='timm/inception_next_base.sail_in1k_384',
        num_params=86_672_136,
        top1=85.2,
        resolution=384,
        recipe='inceptionnext_base, fine-tuned for 30 epochs at 384, batch 1024, lr 5e-5 (Table 9)',
        licence='Apache-2.0',
    ),
}
