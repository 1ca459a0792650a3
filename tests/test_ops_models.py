"""Do small copies of the published models that need unusual ops train a step and predict, without a compiler?"""

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

import dense  # noqa: F401  before anything of mmdet and mmseg
from dense.compat import install

install()

SIZE = 128
CHANNELS = [8, 16, 32, 64]  # of ResNet-18 with a width of 8
DETECTORS = {
    'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': 'FPN_CARAFE',
    'carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py': 'CARAFEPack',
    'dyhead/atss_r50-caffe_fpn_dyhead_1x_coco.py': 'DyHead',
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py': 'MaskedConv2d',
    'dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py': 'DeformRoIPoolPack',
    'dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py': 'ModulatedDeformRoIPoolPack',
}
SEGMENTORS = {
    'psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py': 'PSAMask',
    'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': 'CrissCrossAttention',
}
WIDE = {'in_channels', 'out_channels', 'feat_channels', 'fc_out_channels', 'conv_out_channels', 'channels'}
WIDE |= {'output_channels', 'deform_fc_channels', 'compressed_channels'}


def narrow(node: Any) -> None:
    """Give every layer that counts its channels 32 of them at most."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in WIDE and isinstance(value, int):
            node[key] = min(value, 32)
        elif isinstance(value, dict | list):
            narrow(value)


def small_detector(name: str) -> nn.Module:
    model = get_config(f'mmdet::{name}').model
    narrow(model)
    model.backbone = dict(type='ResNet', depth=18, base_channels=CHANNELS[0], out_indices=(0, 1, 2, 3))
    necks = model.neck if isinstance(model.neck, list) else [model.neck]
    necks[0].in_channels = CHANNELS
    for neck in necks[1:]:
        neck.num_blocks = 2
    if 'rpn_proposal' in model.train_cfg:
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 50
    return built(model, 'mmdet')


def small_segmentor(name: str) -> nn.Module:
    model = get_config(f'mmseg::{name}').model
    narrow(model)
    model.pop('pretrained')
    model.backbone.update(depth=18, base_channels=CHANNELS[0])
    model.decode_head.in_channels, model.auxiliary_head.in_channels = CHANNELS[3], CHANNELS[2]
    if model.decode_head.type == 'PSAHead':
        model.decode_head.mask_size = (9, 9)
    model.data_preprocessor.size = (SIZE, SIZE)
    return revert_sync_batchnorm(built(model, 'mmseg'))


def built(model: Config, scope: str) -> nn.Module:
    torch.manual_seed(0)
    init_default_scope(scope)
    return MODELS.build(model)


def detection_batch() -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for shift in (0, 16):
        boxes = torch.tensor([[10.0, 12.0, 70.0, 60.0], [60.0 + shift, 50.0, 110.0, 120.0]])
        masks = np.zeros((2, SIZE, SIZE), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 7]), masks=BitmapMasks(masks, SIZE, SIZE))
        shape = SIZE, SIZE
        meta = dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(gt_instances=instances, metainfo=meta))
    return dict(inputs=images(), data_samples=samples)


def segmentation_batch() -> dict:
    from mmseg.structures import SegDataSample

    meta = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), padding_size=[0] * 4)
    labels = torch.arange(SIZE).div(16, rounding_mode='floor').expand(1, SIZE, SIZE).clone()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta) for _ in range(2)]
    return dict(inputs=images(), data_samples=samples)


def images() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, SIZE, SIZE), generator=rng, dtype=torch.uint8) for _ in range(2)]


def train_and_predict(model: nn.Module, batch: dict, dtype: torch.dtype | None) -> list:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model.train()(**model.data_preprocessor(batch, True), mode='loss')
    total = model.parse_losses(losses)[0]
    total.backward()
    optimizer.step()
    assert torch.isfinite(total) and total > 0
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert sum(bool(grad.any()) for grad in grads.values()) > 0.7 * len(
        grads
    )  # layers that begin at 0 hold back those before them
    # One image at a time: the masked convolution of guided anchoring takes no more.
    singles = [
        {key: [value] for key, value in zip(batch, pair, strict=True)} for pair in zip(*batch.values(), strict=True)
    ]
    with torch.no_grad():
        return [model.eval()(**model.data_preprocessor(single, False), mode='predict')[0] for single in singles]


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors(name: str, dtype: torch.dtype | None) -> None:
    model = small_detector(name)
    assert DETECTORS[name] in {type(module).__name__ for module in model.modules()}
    results = train_and_predict(model, detection_batch(), dtype)
    assert len(results) == 2 and all(torch.isfinite(result.pred_instances.bboxes).all() for result in results)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors(name: str, dtype: torch.dtype | None) -> None:
    model = small_segmentor(name)
    assert SEGMENTORS[name] in {type(module).__name__ for module in model.modules()}
    results = train_and_predict(model, segmentation_batch(), dtype)
    assert [result.pred_sem_seg.data.shape for result in results] == [(1, SIZE, SIZE)] * 2
