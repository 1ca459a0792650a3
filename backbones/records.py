"""Records of the weights that the papers' authors released: addresses, sizes, recipes and accuracies."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that a paper's authors released.

    Attributes:
        family: Class that they belong to.
        arch: Name in that class's ``ARCHS``.
        url: The authors' file.
        hub_id: timm's copy of the same weights on the Hugging Face hub; None if there is none.
        num_params: Parameters of the whole classifier.
        top1: Published ImageNet-1K validation accuracy in percent; None if there is none.
        resolution: Side of the square crop that ``top1`` was measured at, in pixels.
        recipe: How they were trained.
        licence: SPDX name; ``NOASSERTION`` if the authors' repository has no licence.
        mirrors: Other addresses of the same file, tried in this order if ``url`` fails.
        sha256: Hash of the file, checked after a download; None if its authors published none.
    """

    family: str
    arch: str
    url: str
    hub_id: str | None
    num_params: int
    top1: float | None
    resolution: int
    recipe: str
    licence: str
    mirrors: tuple[str, ...] = ()
    sha256: str | None = None


def _inceptionnext(arch: str, num_params: int, top1: float, recipe: str, resolution: int = 224) -> PublishedWeights:
    # Accuracies: Table 4 of arXiv:2303.16900v3.
    size = '' if resolution == 224 else f'_{resolution}'
    return PublishedWeights(
        family='InceptionNeXt',
        arch=arch,
        url=f'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_{arch}{size}.pth',
        hub_id=f'timm/inception_next_{arch}.sail_in1k{size}',
        num_params=num_params,
        top1=top1,
        resolution=resolution,
        recipe=recipe,
        licence='Apache-2.0',
    )


def _fasternet(arch: str, epoch: int, val_acc: str, num_params: int, top1: float, recipe: str) -> PublishedWeights:
    # Accuracies and recipes: Tables 3 and 6 of arXiv:2303.03667. The repository has no licence file. Its model file
    # names the MIT licence; timm offers its port of the same weights under Apache-2.0.
    file = f'fasternet_{arch}-epoch.{epoch}-val_acc1.{val_acc}.pth'
    return PublishedWeights(
        family='FasterNet',
        arch=arch,
        url=f'https://github.com/JierunChen/FasterNet/releases/download/v1.0/{file}',
        hub_id=f'timm/fasternet_{arch}.in1k',
        num_params=num_params,
        top1=top1,
        resolution=224,
        recipe=recipe,
        licence='NOASSERTION',
    )


def _convnext(arch: str, num_params: int, top1: float | None, *, has_ema: bool) -> PublishedWeights:
    # Accuracies: Table 1 of arXiv:2201.03545. They belong to the moving averages (EMA), which timm offers, too. The
    # authors' detectors and segmentors start from the last weights instead, whose accuracy was not published.
    return PublishedWeights(
        family='ConvNeXt',
        arch=arch,
        url=f'https://dl.fbaipublicfiles.com/convnext/convnext_{arch}_1k_224{"_ema" if has_ema else ""}.pth',
        hub_id=f'timm/convnext_{arch}.fb_in1k' if has_ema else None,
        num_params=num_params,
        top1=top1,
        resolution=224,
        recipe=f'ImageNet-1K, 300 epochs, AdamW, batch 4096, lr 4e-3{", EMA 0.9999" if has_ema else ""} (Table 5)',
        licence='MIT',
    )


def _convnext_variant(arch: str, num_params: int, top1: float) -> PublishedWeights:
    # Accuracies: Table 1 of arXiv:2303.16900v3. The authors' text and their code name the file differently.
    releases = 'https://github.com/sail-sg/inceptionnext/releases/download/model/'
    return PublishedWeights(
        family='ConvNeXt',
        arch=arch,
        url=f'{releases}convnext_{arch}.pth',
        hub_id=None,
        num_params=num_params,
        top1=top1,
        resolution=224,
        recipe='as ConvNeXt-T: ImageNet-1K, 300 epochs, AdamW, batch 4096, lr 4e-3, EMA 0.9999',
        licence='Apache-2.0',
        mirrors=(f'{releases}convnext_{arch}_1k_224_ema.pth',),
    )


_ATTO = 'ImageNet-1K, 450 epochs, AdamW, batch 1280, lr 1e-3 (Table 9)'
_LARGER = 'ImageNet-1K, 300 epochs, AdamW, batch 4096, lr 4e-3 (Table 9)'
_AT_384 = 'inceptionnext_base, fine-tuned for 30 epochs at 384, batch 1024, lr 5e-5 (Table 9)'
_T0_TO_S = 'ImageNet-1K, 300 epochs, 192 px until epoch 280, AdamW, batch 4096, lr 4e-3 (Table 6)'
_M_AND_L = 'ImageNet-1K, 300 epochs, 192 px until epoch 280, AdamW, batch 2048, lr 2e-3 (Table 6)'

WEIGHTS: Mapping[str, PublishedWeights] = {
    'inceptionnext_atto': _inceptionnext('atto', 4_156_520, 75.3, _ATTO),
    'inceptionnext_tiny': _inceptionnext('tiny', 28_055_680, 82.3, _LARGER),
    'inceptionnext_small': _inceptionnext('small', 49_374_016, 83.5, _LARGER),
    'inceptionnext_base': _inceptionnext('base', 86_672_136, 84.0, _LARGER),
    'inceptionnext_base_384': _inceptionnext('base', 86_672_136, 85.2, _AT_384, resolution=384),
    'fasternet_t0': _fasternet('t0', 281, '71.9180', 3_905_500, 71.9, _T0_TO_S),
    'fasternet_t1': _fasternet('t1', 291, '76.2180', 7_595_368, 76.2, _T0_TO_S),
    'fasternet_t2': _fasternet('t2', 289, '78.8860', 14_982_888, 78.9, _T0_TO_S),
    'fasternet_s': _fasternet('s', 299, '81.2840', 31_181_032, 81.3, _T0_TO_S),
    'fasternet_m': _fasternet('m', 291, '82.9620', 53_521_464, 83.0, _M_AND_L),
    'fasternet_l': _fasternet('l', 299, '83.5060', 93_465_192, 83.5, _M_AND_L),
    'convnext_tiny': _convnext('tiny', 28_589_128, 82.1, has_ema=True),
    'convnext_small': _convnext('small', 50_223_688, 83.1, has_ema=True),
    'convnext_base': _convnext('base', 88_591_464, 83.8, has_ema=True),
    'convnext_tiny_noema': _convnext('tiny', 28_589_128, None, has_ema=False),
    'convnext_small_noema': _convnext('small', 50_223_688, None, has_ema=False),
    'convnext_base_noema': _convnext('base', 88_591_464, None, has_ema=False),
    'convnext_tiny_k5': _convnext_variant('tiny_k5', 28_430_152, 82.0),
    'convnext_tiny_k3': _convnext_variant('tiny_k3', 28_324_168, 81.5),
    'convnext_tiny_k3_par1_2': _convnext_variant('tiny_k3_par1_2', 28_291_048, 81.4),
    'convnext_tiny_k3_par3_8': _convnext_variant('tiny_k3_par3_8', 28_282_768, 81.4),
    'convnext_tiny_k3_par1_4': _convnext_variant('tiny_k3_par1_4', 28_274_488, 81.3),
    'convnext_tiny_k3_par1_8': _convnext_variant('tiny_k3_par1_8', 28_266_208, 80.8),
    'convnext_tiny_k3_par1_16': _convnext_variant('tiny_k3_par1_16', 28_262_068, 80.1),
}
