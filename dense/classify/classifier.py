"""A backbone with a head, trained and tested by MMEngine like every other model.

Legend: N images in a batch, S side of an image in pixels, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional

from dense.classify.augment import BatchAugment
from dense.classify.weights import load_classifier, own_state_dict
from dense.errors import UserError


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """An image classifier: a backbone and a head.

    Args:
        backbone: Config of a backbone; its last output is classified.
        head: Config of a head in :mod:`dense.classify.heads`.
        data_preprocessor: Config of MMEngine's ``ImgDataPreprocessor``, which normalises and moves the images.
        train_cfg: Arguments of :class:`~dense.classify.augment.BatchAugment`, except the number of classes.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with a whole published checkpoint: a file, a URL or the
            name of a record. For the backbone's part of one, give it to the backbone.

    Raises:
        UserError: The backbone's last channels are not those that the head takes.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        head: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            data_preprocessor=dict(data_preprocessor) if data_preprocessor else None,
            init_cfg=dict(init_cfg) if init_cfg else None,
        )
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(head)
        if self.backbone.out_channels[-1] != self.head.in_channels:
            raise UserError(
                f'the backbone ends in {self.backbone.out_channels[-1]} channels, but the head takes '
                f'{self.head.in_channels}',
                'set model.head.in_channels to the channels of the last stage',
            )
        self.augment = BatchAugment(self.head.num_classes, **(train_cfg or {}))

    def forward(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | Sequence[BaseDataElement]:
        """Compute what ``mode`` asks for.

        Args:
            inputs: Normalised images, ``(N, 3, S, S)``.
            data_samples: One per image, with ``gt_label`` for the loss.
            mode: ``'tensor'`` for logits ``(N, K)``, ``'loss'`` for a dict with a scalar, ``'predict'`` for the
                samples with ``pred_label`` and ``pred_scores`` ``(K,)`` added.

        Raises:
            ValueError: Unknown mode.
        """
        if mode == 'tensor':
            return self.logits(inputs)
        if mode == 'loss':
            return self.loss(inputs, data_samples or ())
        if mode == 'predict':
            return self.predict(inputs, data_samples or ())
        raise ValueError(f'mode={mode!r}, allowed are tensor, loss and predict.\nGive one of these.')

    def logits(self, images: Tensor) -> Tensor:
        """``(N, 3, S, S) -> (N, K)``."""
        return self.head(self.backbone(images)[-1])

    def loss(self, images: Tensor, samples: Sequence[BaseDataElement]) -> dict[str, Tensor]:
        """Return the cross entropy of the augmented batch with its soft targets, as ``loss``.

        Args:
            images: ``(N, 3, S, S)``.
            samples: With ``gt_label``.
        """
        labels = torch.tensor([sample.gt_label for sample in samples], device=images.device)
        images, targets = self.augment(images, labels)
        return {'loss': functional.cross_entropy(self.logits(images).float(), targets)}

    def predict(self, images: Tensor, samples: Sequence[BaseDataElement]) -> Sequence[BaseDataElement]:
        """Add ``pred_scores`` ``(K,)``, which sum to 1, and ``pred_label``, the class of the largest, to the samples.

        Args:
            images: ``(N, 3, S, S)``.
            samples: One per image; changed in place.
        """
        for sample, scores in zip(samples, self.logits(images).float().softmax(dim=1), strict=True):
            sample.pred_scores = scores
            sample.pred_label = int(scores.argmax())
        return samples

    def init_weights(self) -> None:
        """Load the weights that ``init_cfg`` names, of the whole classifier or of the backbone.

        Raises:
            UserError: ``init_cfg`` has another type or unknown fields, or the weights do not fit.
        """
        if not self.init_cfg:
            self.backbone.init_weights()
            return
        if self.init_cfg.get('type') != 'Pretrained' or set(self.init_cfg) != {'type', 'checkpoint'}:
            raise UserError(
                f'init_cfg={self.init_cfg!r} is not understood by ImageClassifier',
                "give dict(type='Pretrained', checkpoint=FILE, URL or NAME), or None",
            )
        print_log(load_classifier(self, self.init_cfg['checkpoint']), logger='current')
        self._is_init = True

    def convert_checkpoint(self, content: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weights of a checkpoint, this model's own or a published one, under this model's names; pure."""
        return own_state_dict(self, content)
