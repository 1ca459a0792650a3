"""Networks of timm that several suites use, and their random weights."""

from typing import Any

import timm
import torch
from torch import Tensor

from backbones import TimmBackbone

# One of each kind: timm extracts features by lists of modules, by classes of their own, by intermediate layers; with
# and without a stage of stride 2; maps in NHWC (Swin) and of one stride (ViT). Swin is cut down to run fast.
ARCHS: dict[str, dict[str, Any]] = {
    'test_resnet': {},
    'resnet10t': {},
    'tf_efficientnet_lite0': {},
    'mobilenetv3_small_050': {},
    'regnetx_002': {},
    'convnext_atto': {},
    'inception_next_atto': {},
    'fasternet_t0': {},
    'repvit_m0_9': {},
    'swin_tiny_patch4_window7_224': dict(
        embed_dim=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), strict_img_size=False
    ),
    'test_vit': dict(dynamic_img_size=True),
}
PATCHES = {'swin_tiny_patch4_window7_224': 4, 'test_vit': 16}  # timm's own refuse images of other multiples
SMALL = ['test_resnet', 'mobilenetv3_small_050', 'swin_tiny_patch4_window7_224', 'test_vit']
SOME = [*SMALL, 'tf_efficientnet_lite0', 'regnetx_002', 'inception_next_atto']


def build(arch: str, **arguments: Any) -> TimmBackbone:
    return TimmBackbone(arch, timm_options=ARCHS[arch], **arguments)


def images(*size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def random_weights(arch: str, **options: Any) -> dict[str, Tensor]:
    """The state dict of timm's whole classifier, with statistics and norms that matter."""
    generator = torch.Generator().manual_seed(0)
    state = timm.create_model(arch, **ARCHS[arch], **options).state_dict()
    for key, value in state.items():
        if key.endswith('running_var') or (value.ndim == 1 and key.endswith(('weight', 'gamma'))):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith(('running_mean', 'bias')):
            value.normal_(0, 0.1, generator=generator)
    return state
