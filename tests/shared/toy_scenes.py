"""A detector of a few hundred weights on made-up images of several sizes, with all that makes processes differ."""

import importlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional
from toy_run import toy_config

from dense.engine.launch import train

SIZES = ((12, 16), (16, 12), (12, 12), (10, 16), (16, 10))
OBJECTS = (3, 0, 1, 5, 2, 0, 0)  # of an image


@DATASETS.register_module()
class ToyScenes:
    """Images with some objects; some have none.

    Args:
        length: Number of images.
    """

    metainfo: ClassVar[dict[str, Any]] = {}

    def __init__(self, length: int = 22) -> None:
        self.length = length

    def full_init(self) -> None:
        """There is nothing to read."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        height, width = SIZES[index % len(SIZES)]
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, height, width, generator=generator) + 0.3 * torch.rand(1)  # the last is augmentation
        count = OBJECTS[index % len(OBJECTS)]
        objects = torch.rand(count, 2, generator=generator)
        return dict(inputs=image, data_samples=BaseDataElement(objects=objects))

    def get_data_info(self, index: int) -> dict[str, float]:
        """Width and height for samplers that group by them."""
        height, width = SIZES[index % len(SIZES)]
        return dict(width=width, height=height)


class ToySampler:
    """Takes 6 of 16 regions of each image at random, and draws more where there are objects, as mmdet's samplers do."""

    def sample(self, objects: Tensor) -> Tensor:
        """Positions of the regions."""
        return self._sample_pos(len(objects))

    def _sample_pos(self, number: int) -> Tensor:
        torch.rand(number)
        return torch.randperm(16)[:6]


class ToyLoss(nn.Module):
    """A squared error, divided by ``avg_factor``, or by the number of rows."""

    def forward(self, values: Tensor, target: Tensor | float, avg_factor: float | None = None) -> Tensor:
        return (values - target).square().sum() / (len(values) if avg_factor is None else avg_factor)


class ToyHead(nn.Module):
    """Losses that a process divides by its own numbers of regions and objects."""

    def __init__(self) -> None:
        super().__init__()
        self.regions, self.objects = nn.Linear(8, 1), nn.Linear(8, 2)
        self.loss_region, self.loss_object, self.loss_shape = ToyLoss(), ToyLoss(), ToyLoss()
        self.sampler = ToySampler()

    def loss(self, maps: Tensor, samples: list[Any]) -> dict[str, Any]:
        """Losses of maps ``(N, 8, H, W)``."""
        at = [self.sampler.sample(sample.objects) for sample in samples]
        regions = [x.flatten(1)[:, places].T for x, places in zip(maps, at, strict=True)]
        features = torch.cat([x.mean((1, 2)).expand(len(s.objects), -1) for x, s in zip(maps, samples, strict=True)])
        target = torch.cat([sample.objects for sample in samples])
        number, count = sum(map(len, regions)), 4 * sum(max(1, len(sample.objects)) for sample in samples)
        found = self.objects(features)
        levels = [self.loss_region(self.regions(torch.cat(regions)) * k, 0.5, avg_factor=count) for k in (1, 2)]
        if len(target):  # as mmdet's heads do
            shape, box = 2 * self.loss_shape(found, target), self.loss_object(found, target, avg_factor=number)
        else:
            shape = box = found.sum()
        return dict(loss_region=levels, loss_object=box, accuracy=maps.detach().mean(), loss_shape=shape)


@MODELS.register_module()
class ToyDetector(BaseModel):
    """A convolution, a norm, drop path, dropout, and a head.

    Args:
        norm: ``'GN'`` or ``'SyncBN'``.
    """

    def __init__(self, norm: str = 'GN', **kwargs: Any) -> None:
        super().__init__(data_preprocessor=dict(type='ImgDataPreprocessor', pad_size_divisor=4), **kwargs)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8) if norm == 'GN' else nn.SyncBatchNorm(8)
        self.branch, self.drop_path = nn.Conv2d(8, 8, 3, padding=1), DropPath(0.4)
        self.channels, self.elements = nn.Dropout2d(0.2), nn.Dropout(0.2)
        self.head = ToyHead()

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str = 'tensor') -> Any:
        x = self.norm(self.stem(inputs)).relu()
        x = self.elements(self.channels(x + self.drop_path(self.branch(x))))
        return self.head.loss(x, data_samples) if mode == 'loss' else [x.mean() for x in functional.relu(x)]


def scenes_config(work_dir: Path, images: int, processes: int, changes: dict[str, Any]) -> Config:
    """Config of a run.

    Args:
        work_dir: Its folder.
        images: Of a step, in all processes together.
        processes: Number of them.
        changes: Dotted keys and their values.
    """
    data = dict(dataset=dict(_delete_=True, type='ToyScenes'), batch_size=images // processes)
    cfg = toy_config(work_dir, launcher='pytorch' if processes > 1 else 'none')
    cfg.merge_from_dict(dict(model=dict(type='ToyDetector'), train_dataloader=data, val_dataloader=data))
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.005, momentum=0.5)
    cfg.merge_from_dict(changes)
    importlib.import_module('mmdet.datasets')  # registers its samplers; only after dense has repaired mmcv
    return cfg


def train_on_scenes(*args: Any) -> dict[str, Any]:
    """Train by :func:`scenes_config`, and return what was logged and the weights."""
    return outcome(train(scenes_config(*args)))


def outcome(runner: Any) -> dict[str, Any]:
    """Logged values of all steps, and weights, of a run that has ended."""
    model = getattr(runner.model, 'module', runner.model)
    logged = runner.message_hub.log_scalars
    values = {key: logged[key].data[0].tolist() for key in logged if key.startswith('train/') and 'time' not in key}
    return dict(logged=values, weights={key: value.clone() for key, value in model.state_dict().items()})
