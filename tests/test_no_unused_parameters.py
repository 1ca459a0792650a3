"""Does every parameter that is trained get a gradient, also from images without any object?

A parameter without one stops a run of several processes, which wait for the gradients of all.
"""

import copy
from typing import Any

import pytest
import torch
from leaves import EXPECTED, load, parts_of
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from tiny_sets import reduce

import dense
from dense.benchmark.dummy_targets import SAMPLES

assert dense  # repairs mmcv, which the models need

SIZE = (64, 96)
FAST = ('mask-rcnn_inceptionnext-a_fpn_400i_own-320x320', 'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512')
NAMES = sorted({name for names in EXPECTED.values() for name in names})


def empty(samples: list[Any]) -> None:
    """Take everything that there is to learn out of the truth of images."""
    for sample in samples:
        if 'gt_instances' in sample:
            sample.gt_instances = InstanceData(
                bboxes=torch.zeros(0, 4),
                labels=torch.zeros(0, dtype=torch.long),
                masks=type(sample.gt_instances.masks)([], *SIZE),
            )
        elif 'gt_sem_seg' in sample:
            sample.gt_sem_seg.data = torch.full((1, *SIZE), 255)


def cases() -> list[Any]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize('name', cases())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    cfg = copy.deepcopy(load(name))
    if parts_of(name)['method'] != 'classifier':
        reduce(cfg)
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    images = torch.rand(2, 3, *SIZE)
    for has_objects in (True, False):
        samples = SAMPLES[cfg.default_scope](model, images)
        if not has_objects:
            empty(samples)
        loss, _ = model.parse_losses(model(images.clone(), samples, mode='loss'))
        model.zero_grad()
        loss.backward()
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        assert trained
        assert [key for key, value in trained.items() if value.grad is None] == [], f'objects: {has_objects}'
