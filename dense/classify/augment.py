"""Augments a whole training batch: mixup, cutmix, random erasing, label smoothing, in this order.

timm does each of them, on the device of the batch. The random numbers are seeded by the step and by the images' place
in the global batch (:func:`dense.randomness.randomness_at`), so a resumed run draws the same ones.
"""

import torch
from mmengine.dist import get_dist_info
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional

from dense.errors import UserError
from dense.randomness import BATCH, randomness_at


class BatchAugment:
    """Mix and erase images, and turn labels into soft targets.

    Args:
        num_classes: K.
        label_smoothing: Share of a target that is spread over all classes, in [0, 1).
        mixup: Both parameters of the beta distribution that mixup draws its weight from; 0 for no mixup.
        cutmix: The same for cutmix; 0 for no cutmix. With both, each batch gets one of them, half the time each.
        erase_prob: Probability that a rectangle of an image becomes noise.
        group: Images that are mixed among each other with one weight. By default those of a process, as in timm's
            script; the result then depends on the number of processes. A number that divides the batch of each process
            makes it independent.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erase_prob: float = 0.0,
        group: int | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1 or not 0 <= erase_prob <= 1 or mixup < 0 or cutmix < 0:
            raise UserError(
                f'label_smoothing={label_smoothing}, mixup={mixup}, cutmix={cutmix}, erase_prob={erase_prob}: allowed '
                'are 0 to below 1, not negative, not negative, 0 to 1',
                'correct model.train_cfg',
            )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.erase_prob = erase_prob
        self.group = group
        self.mix: Mixup | None = None
        if mixup > 0 or cutmix > 0:
            self.mix = Mixup(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: Normalised, ``(N, 3, H, W)``; may be changed in place.
            labels: Class of each, ``(N,)``.

        Returns:
            Images of the same shape, and targets ``(N, K)`` that sum to 1.

        Raises:
            UserError: Images are mixed in pairs, but their number is odd.
        """
        # Every n-th image makes a group, so that the groups of all processes are those of one.
        number = len(images) // self.group if self.group and len(images) % self.group == 0 else 1
        rank, world_size = get_dist_info()
        parts = []
        for place in range(number):
            with randomness_at(BATCH, place * world_size + rank):
                parts.append(self._augment(images[place::number], labels[place::number]))
        if number == 1:
            return parts[0]
        images, targets = (torch.stack(tensors, 1).flatten(0, 1) for tensors in zip(*parts, strict=True))
        return images, targets

    def _augment(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.mix is None:
            targets = functional.one_hot(labels, self.num_classes).to(images.dtype)
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        else:
            if len(images) % 2:
                raise UserError(
                    f'mixup and cutmix pair up the images of a batch, but one has {len(images)}',
                    'use an even train_dataloader.batch_size, and drop a last batch that is not full',
                )
            images, targets = self.mix(images, labels)
        if self.erase_prob > 0:
            images = RandomErasing(self.erase_prob, mode='pixel', device=images.device)(images)
        return images, targets
