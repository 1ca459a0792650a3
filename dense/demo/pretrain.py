"""Pretrains a backbone as a classifier on folders of pictures.

It takes minutes, not days, on data as small as the generated crops: enough to start a detector or a segmenter from
features that know the classes, loaded like any published weights by ``init_cfg=dict(type='Pretrained', ...)``.

Legend: N images in a batch, S side of an image in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from backbones import checksums
from backbones.base import DenseBackbone
from dense.errors import UserError

# ImageNet's statistics in RGB, 0..255, as in the configs' data preprocessors.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Pretrained:
    """The result of :func:`pretrain`.

    Attributes:
        checkpoint: File with the backbone's weights.
        accuracy: Share of correct answers on the held-out pictures, 0..1.
    """

    checkpoint: Path
    accuracy: float


def read_folders(root: str | Path) -> tuple[Tensor, Tensor]:
    """Read square pictures of one size from ``root/<class>/*.jpg``; classes are numbered in the order of their names.

    Returns:
        Images ``(N, 3, S, S)``, normalised RGB, and their classes ``(N,)``.

    Raises:
        UserError: There are fewer than two classes, or pictures of different sizes.
    """
    folders = sorted(path for path in Path(root).glob('*') if path.is_dir())
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob('*.jpg'))]
    images = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path, _ in files]
    if len(folders) < 2 or len({None if image is None else image.shape for image in images}) != 1:
        raise UserError(
            f'{root} holds {len(folders)} classes and {len(files)} pictures that are not all readable and of one size.',
            'Classification needs root/<class>/*.jpg with at least two classes and pictures of one size.',
        )
    stacked = (
        torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
    )  # (N, S, S, 3) -> (N, 3, S, S)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (stacked - mean) / std, torch.tensor([label for _, label in files])


def pretrain(
    backbone: DenseBackbone,
    root: str | Path,
    checkpoint: str | Path,
    *,
    steps: int = 200,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Pretrained:
    """Train a backbone to classify single objects, and save its weights without the classifier.

    Every tenth picture is held out to measure the accuracy.

    Args:
        backbone: Its last output is pooled and classified; trained in place.
        root: Pictures in one folder per class, see :func:`read_folders`.
        checkpoint: File to write, a flat state dict.
        steps: Batches to train on.
        batch_size: Pictures in a batch.
        lr: Highest learning rate of AdamW, reached after a third of the steps (one cycle).
        seed: Seed of the order and the flips.
        on_step: Called after each step with the number of steps done and the loss.
    """
    images, labels = read_folders(root)
    held_out = torch.arange(len(images)) % 10 == 0
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(backbone.out_channels[-1]),
        nn.Linear(backbone.out_channels[-1], int(labels.max()) + 1),
    )
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    backbone.train()
    train_images, train_labels = images[~held_out], labels[~held_out]
    for step in range(steps):
        chosen = torch.randint(len(train_images), (batch_size,), generator=generator)
        batch = _turn(train_images[chosen], int(torch.randint(8, (1,), generator=generator)))
        loss = nn.functional.cross_entropy(head(backbone(batch)[-1]), train_labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, loss.item())
    accuracy = _accuracy(backbone, head, images[held_out], labels[held_out])
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    checksums.forget(checkpoint)
    torch.save(backbone.state_dict(), checkpoint)
    checksums.record(checkpoint)
    return Pretrained(Path(checkpoint), accuracy)


def _turn(images: Tensor, way: int) -> Tensor:
    """Turn a batch by one of the eight symmetries of the square, 0..7: ``(N, 3, S, S) -> (N, 3, S, S)``."""
    images = torch.rot90(images, way % 4, dims=(2, 3))
    return images.flip(3) if way >= 4 else images


@torch.no_grad()
def _accuracy(backbone: nn.Module, head: nn.Module, images: Tensor, labels: Tensor) -> float:
    backbone.eval()
    head.eval()
    return float((head(backbone(images)[-1]).argmax(dim=1) == labels).float().mean())
