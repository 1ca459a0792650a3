"""Turns an image file into a tensor with timm's transforms for training and testing, without normalisation.

Images are returned as bytes, a quarter of the size of floats; the model's data preprocessor normalises them on its
device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment, posterize
from torch import Tensor
from torchvision.transforms import Compose


class PhotoTransform:
    """Load an image, transform it, and pack it with its label.

    Args:
        transform: Takes an RGB image, returns bytes ``(3, S, S)``.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, info: dict[str, Any]) -> dict[str, Any]:
        """Make a sample.

        Args:
            info: With ``img_path`` and ``gt_label``.

        Returns:
            ``inputs``, bytes ``(3, S, S)``, and ``data_samples``, the label and the path.
        """
        with Image.open(info['img_path']) as image:
            inputs = self.transform(as_rgb(image))
        sample = BaseDataElement(metainfo=dict(img_path=info['img_path']))
        sample.gt_label = int(info['gt_label'])
        return dict(inputs=inputs, data_samples=sample)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image with three channels of 8 bits; of 16 bits the higher 8 stay, which Pillow would cut off.

    Args:
        image: Of any mode.
    """
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert('RGB')


@TRANSFORMS.register_module()
class TimmTrainTransform(PhotoTransform):
    """Crop a random part of the image, resize it, perhaps flip it, then apply RandAugment or colour jitter.

    Mixing and erasing come later, on the whole batch (:mod:`dense.classify.augment`).

    Args:
        size: S, side of the result in pixels.
        auto_augment: timm's notation, for example ``'rand-m9-mstd0.5-inc1'``; None for none.
        color_jitter: Strength, used only without ``auto_augment``; 0 for none.
        interpolation: ``'bicubic'``, ``'bilinear'``, or ``'random'`` for one of the two at random.
        scale: Least and largest share of the image's area.
        hflip: Probability of flipping left and right.
    """

    def __init__(
        self,
        size: int,
        *,
        auto_augment: str | None = None,
        color_jitter: float = 0.0,
        interpolation: str = 'random',
        scale: Sequence[float] = (0.08, 1.0),
        hflip: float = 0.5,
    ) -> None:
        transform = create_transform(
            size,
            is_training=True,
            auto_augment=auto_augment,
            color_jitter=color_jitter or None,
            interpolation=interpolation,
            scale=(scale[0], scale[1]),
            hflip=hflip,
            normalize=False,
        )
        for operation in _operations(transform):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
        super().__init__(transform)


@TRANSFORMS.register_module()
class TimmTestTransform(PhotoTransform):
    """Take the middle of the image: resize the shortest side to ``size / crop_pct``, then crop the central square.

    Args:
        size: S, side of the result in pixels.
        crop_pct: Share of the resized shortest side that the square takes, in (0, 1].
        interpolation: ``'bicubic'`` or ``'bilinear'``.
    """

    def __init__(self, size: int, *, crop_pct: float = 0.875, interpolation: str = 'bicubic') -> None:
        super().__init__(create_transform(size, interpolation=interpolation, crop_pct=crop_pct, normalize=False))


def _operations(transform: Compose) -> list[AugmentOp]:
    return [op for step in transform.transforms if isinstance(step, RandAugment) for op in step.ops]


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    # The strongest level keeps no bits: older Pillow versions return a black image, Pillow 13 refuses.
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
