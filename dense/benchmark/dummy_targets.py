"""Made-up ground truth for a batch of random images, to time a training step without data."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

OBJECTS = 10  # per image; COCO has 7 on average
SMALLEST = 16.0  # side of a box, in pixels


def random_boxes(num: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Return boxes of all sizes, with all octaves equally likely, anywhere in the image.

    Args:
        num: Number of boxes.
        height: Height of the image in pixels, at least 16.
        width: Width of the image in pixels, at least 16.
        seed: Seed of the boxes.

    Returns:
        ``(x1, y1, x2, y2)`` in pixels, shape (num, 4).
    """
    generator = torch.Generator().manual_seed(seed)
    sides = SMALLEST * (torch.tensor([width, height]) / SMALLEST) ** torch.rand(num, 2, generator=generator)
    corner = (torch.tensor([width, height]) - sides) * torch.rand(num, 2, generator=generator)
    return torch.cat([corner, corner + sides], dim=1)


def random_regions(num: int, images: Tensor) -> Tensor:
    """Return regions of each image for a region extractor: image index and corners, shape (N * num, 5).

    Args:
        num: Regions per image.
        images: Shape (N, C, H, W).
    """
    boxes = random_boxes(num, *images.shape[2:]).to(images.device)
    indices = torch.arange(len(images), device=images.device).repeat_interleave(num)
    return torch.cat([indices[:, None].to(boxes.dtype), boxes.repeat(len(images), 1)], dim=1)


def _objects(model: nn.Module, images: Tensor) -> list[Any]:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = images.shape[2:]
    boxes = random_boxes(OBJECTS, height, width)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.zeros(OBJECTS, dtype=torch.long)
    samples = []
    for _ in images:
        sample = DetDataSample(metainfo=dict(_sizes(images), batch_input_shape=(height, width)))
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(images.device), labels=labels.to(images.device), masks=BitmapMasks(masks, height, width)
        )
        samples.append(sample)
    return samples


def _pixels(model: Any, images: Tensor) -> list[Any]:
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(model.decode_head.num_classes, (1, *images.shape[2:]), generator=generator)
    truth = PixelData(data=labels.to(images.device))
    return [SegDataSample(metainfo=_sizes(images), gt_sem_seg=truth) for _ in images]


def _classes(model: Any, images: Tensor) -> list[Any]:
    samples = [BaseDataElement() for _ in images]
    for i, sample in enumerate(samples):
        sample.gt_label = i % model.head.num_classes
    return samples


def _sizes(images: Tensor) -> dict[str, Any]:
    size = tuple(images.shape[2:])
    return dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))


# Default scope of a config -> truth for a batch of images (N, 3, H, W) that its model can train on.
SAMPLES: Mapping[str, Callable[[nn.Module, Tensor], list[Any]]] = {
    'mmdet': _objects,
    'mmseg': _pixels,
    'mmengine': _classes,
}
