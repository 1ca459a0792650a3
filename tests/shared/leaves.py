"""The leaf configs: which ones must exist, how to read their names, and what several suites check about them."""

import copy
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from timm.layers import LayerNorm2d
from torch import nn

import backbones

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted(CONFIGS.rglob('*.py'))
BASES = [path for path in FILES if '_base_' in path.parts]
LEAVES = [path for path in FILES if '_base_' not in path.parts]
BY_NAME = {path.stem: path for path in LEAVES}

# What stands in a name -> type and arch of the backbone. ResNet's are those of mmdet and mmseg.
INCEPTIONNEXT = {
    'inceptionnext-a': ('InceptionNeXt', 'atto'),
    'inceptionnext-t': ('InceptionNeXt', 'tiny'),
    'inceptionnext-s': ('InceptionNeXt', 'small'),
    'inceptionnext-b': ('InceptionNeXt', 'base'),
}
FASTERNET = {f'fasternet-{arch}': ('FasterNet', arch) for arch in ('t0', 't1', 't2', 's', 'm', 'l')}
CONVNEXT = {
    'convnext-t': ('ConvNeXt', 'tiny'),
    'convnext-s': ('ConvNeXt', 'small'),
    'convnext-b': ('ConvNeXt', 'base'),
}
CONVNEXT_VARIANTS = {
    f'convnext-t-{kernel.replace("_", "-")}': ('ConvNeXt', f'tiny_{kernel}')
    for kernel in ('k5', 'k3', 'k3_par1_2', 'k3_par3_8', 'k3_par1_4', 'k3_par1_8', 'k3_par1_16')
}
BACKBONES = {**INCEPTIONNEXT, **FASTERNET, **CONVNEXT, **CONVNEXT_VARIANTS}

# Table or purpose -> names of its leaves. A missing leaf and one that stands in no table are both errors.
EXPECTED: dict[str, list[str]] = {
    'Mask R-CNN 1x': [f'mask-rcnn_{arch}_fpn_1x_coco' for arch in [*BACKBONES, 'r50']],
    'Mask R-CNN 3x': [
        *(f'mask-rcnn_{arch}_fpn_amp-ms-crop-3x_coco' for arch in [*INCEPTIONNEXT, *CONVNEXT]),
        *(f'mask-rcnn_{arch}_fpn_ms-crop-3x_coco' for arch in FASTERNET),
        'mask-rcnn_r50_fpn_ms-3x_coco',
    ],
    'Cascade Mask R-CNN 3x': [
        f'cascade-mask-rcnn_{arch}_fpn_amp-ms-crop-3x_coco'
        for arch in [*INCEPTIONNEXT, *CONVNEXT]
        if arch != 'inceptionnext-a'
    ],
    'RetinaNet 1x': [f'retinanet_{arch}_fpn_1x_coco' for arch in ('inceptionnext-a', 'inceptionnext-t', 'fasternet-s')],
    'UperNet 160k': [
        *(
            f'upernet_{arch}_4xb4-160k_ade20k-512x512'
            for arch in [*INCEPTIONNEXT, 'fasternet-s', 'fasternet-m', 'fasternet-l', 'r50']
        ),
        *(f'upernet_{arch}_4xb4-amp-160k_ade20k-512x512' for arch in CONVNEXT),
    ],
    'Semantic FPN 40k': [
        f'semantic-fpn_{arch}_8xb4-40k_ade20k-512x512' for arch in [*INCEPTIONNEXT, *FASTERNET, 'r50']
    ],
    'ImageNet': [
        'classifier_inceptionnext-a_8xb160-450e_in1k-224x224',
        *(f'classifier_inceptionnext-{arch}_8xb128-300e_in1k-224x224' for arch in 'tsb'),
        # 8 x 32 x 4 images per update, as in the released command: its batch statistics are those of 32 images.
        'classifier_inceptionnext-b_8xb32-30e_in1k-384x384',
        *(f'classifier_{arch}_8xb512-300e_in1k-224x224' for arch in FASTERNET if arch[-1] not in 'ml'),
        *(f'classifier_{arch}_8xb256-300e_in1k-224x224' for arch in FASTERNET if arch[-1] in 'ml'),
        *(f'classifier_{arch}_8xb128-300e_in1k-224x224' for arch in [*CONVNEXT, *CONVNEXT_VARIANTS]),
    ],
    'real data at small size': [
        'mask-rcnn_inceptionnext-a_fpn_400i_coco-320x320',
        'mask-rcnn_inceptionnext-a_fpn_400i_own-320x320',
        'upernet_inceptionnext-a_400i_own-256x256',
        'classifier_inceptionnext-a_30e_own-64x64',
    ],
    'mini data set': [
        'mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160',
        'upernet_inceptionnext-a_450i_mini-128x128',
    ],
}

NAME = re.compile(
    r'(?P<method>[a-z-]+)_(?P<arch>[a-z0-9-]+)(_(?P<neck>fpn))?'
    r'_((?P<gpus>\d+)xb(?P<batch>\d+)-)?(?P<amp>amp-)?(?P<scales>ms-crop-|ms-)?(?P<length>\d+)(?P<unit>[xkie])'
    r'_(?P<dataset>[a-z0-9]+)(-(?P<height>\d+)x(?P<width>\d+))?'
)


def parts_of(name: str) -> dict[str, str]:
    """What a leaf's name says, by the groups of :data:`NAME`; empty texts for what it leaves out."""
    match = NAME.fullmatch(name)
    assert match, f'{name} is not method_arch[_neck]_[AxbB-][amp-][ms-[crop-]]schedule_dataset[-size]'
    return {key: value or '' for key, value in match.groupdict().items()}


@cache
def load(name: str) -> Config:
    """The merged config of a leaf. Not to be changed: tests share it."""
    return Config.fromfile(BY_NAME[name])


@cache
def build_on_meta(name: str) -> nn.Module:
    """The model at its true size, without memory for its parameters. Not to be changed: tests share it."""
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(copy.deepcopy(cfg.model))  # detectors write into their heads' configs


# Class of a backbone -> norm of the maps that it hands to a neck or head.
OUT_NORMS = {'InceptionNeXt': nn.SyncBatchNorm, 'FasterNet': nn.BatchNorm2d, 'ConvNeXt': LayerNorm2d}


def assert_drop_path_grows_linearly(name: str, last: float) -> None:
    """Every block of the leaf's backbone has its rate, from 0 in the first to ``last`` in the last."""
    family, arch = BACKBONES[parts_of(name)['arch']]
    stages = build_on_meta(name).backbone.stages
    rates = [getattr(block.drop_path, 'drop_prob', 0) for stage in stages for block in stage.blocks]
    assert len(rates) == sum(getattr(backbones, family).ARCHS[arch].depths)
    np.testing.assert_allclose(rates, np.linspace(0, last, len(rates)), atol=1e-6)


def find_all(node: Any, key: str) -> list[Any]:
    """Every value of ``key`` anywhere below ``node``."""
    return list(_find(node, key))


def _find(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _find(item, key)


def lr_curve(cfg: Config, iters_per_epoch: int, wanted: Iterable[int]) -> dict[int, float]:
    """Learning rate at the wanted iterations, by MMEngine's own schedulers stepped as its hook steps them."""
    wanted = set(wanted)
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(item, **({'epoch_length': iters_per_epoch} if item.get('convert_to_iter_based') else {})),
            default_args=dict(optimizer=optimizer),
        )
        for item in cfg.param_scheduler
    ]
    optimizer.step()
    rates = {}
    for iteration in range(max(wanted) + 1):
        if iteration in wanted:
            rates[iteration] = optimizer.param_groups[0]['lr']
        for scheduler in schedulers:
            if not scheduler.by_epoch or (iteration + 1) % iters_per_epoch == 0:
                scheduler.step()
    return rates
