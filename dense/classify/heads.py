"""The three papers' classifier heads, which also read the names used in their checkpoints.

Legend: N images in a batch, C channels of the last stage, H and W its height and width, K classes.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dense.errors import UserError

ACTIVATIONS: Mapping[str, type[nn.Module]] = {'GELU': nn.GELU, 'ReLU': nn.ReLU}


class ClassifierHead(nn.Module):
    """Turns the last map of a backbone into class scores.

    Args:
        in_channels: C.
        num_classes: K.
    """

    # Start of a name in published checkpoints -> in this class. The first match counts.
    PUBLISHED: ClassVar[Mapping[str, str]] = {}

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(
                f'num_classes={num_classes}, at least 2 are needed', 'set model.head.num_classes to their number'
            )
        self.in_channels = in_channels
        self.num_classes = num_classes

    @classmethod
    def convert_state_dict(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pick this head's tensors out of a published checkpoint, under this class's names; no tensor is changed.

        Args:
            state_dict: Of the whole network, in the authors' layout or timm's, without prefixes.
        """
        found = {}
        for key, value in state_dict.items():
            prefix = next((prefix for prefix in cls.PUBLISHED if key.startswith(prefix)), None)
            if prefix is not None:
                found[cls.PUBLISHED[prefix] + key.removeprefix(prefix)] = value
        return found


def _init_weights(module: nn.Module) -> None:
    # As in all three released codes: truncated normal of std 0.02, zero biases; norms keep ones and zeros.
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@MODELS.register_module()
class InceptionNeXtHead(ClassifierHead):
    """InceptionNeXt's MLP head: pooling, C -> 3 C, GELU, layer norm, dropout, 3 C -> K.

    Args:
        in_channels: C.
        num_classes: K.
        dropout: Probability before the last layer, in [0, 1); 0.5 in the fine-tuning at 384 pixels, else 0.
    """

    PUBLISHED: ClassVar[Mapping[str, str]] = {'head.': ''}

    def __init__(self, in_channels: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__(in_channels, num_classes)
        self.fc1 = nn.Linear(in_channels, 3 * in_channels)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(3 * in_channels, eps=1e-6)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(3 * in_channels, num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, K)``."""
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x.mean((2, 3)))))))


@MODELS.register_module()
class FasterNetHead(ClassifierHead):
    """FasterNet's head: pooling, C -> 1280 without a bias, activation, 1280 -> K.

    Args:
        in_channels: C.
        num_classes: K.
        act: ``'GELU'`` (T0, T1) or ``'ReLU'`` (the larger ones), as in the backbone.

    Raises:
        UserError: Unknown activation.
    """

    # The authors' two, timm's two.
    PUBLISHED: ClassVar[Mapping[str, str]] = {
        'avgpool_pre_head.1.': 'conv.',
        'head.': 'fc.',
        'conv_head.': 'conv.',
        'classifier.': 'fc.',
    }
    HIDDEN_CHANNELS = 1280

    def __init__(self, in_channels: int, num_classes: int, *, act: str = 'ReLU') -> None:
        super().__init__(in_channels, num_classes)
        if act not in ACTIVATIONS:
            raise UserError(f'unknown act {act!r} of FasterNetHead', f'use one of {", ".join(ACTIVATIONS)}')
        self.conv = nn.Conv2d(in_channels, self.HIDDEN_CHANNELS, 1, bias=False)
        self.act = ACTIVATIONS[act]()
        self.fc = nn.Linear(self.HIDDEN_CHANNELS, num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, K)``."""
        return self.fc(torch.flatten(self.act(self.conv(x.mean((2, 3), keepdim=True))), 1))


@MODELS.register_module()
class ConvNeXtHead(ClassifierHead):
    """ConvNeXt's head: pooling, layer norm, C -> K.

    Args:
        in_channels: C.
        num_classes: K.
    """

    # timm's two, the authors' two.
    PUBLISHED: ClassVar[Mapping[str, str]] = {
        'head.norm.': 'norm.',
        'head.fc.': 'fc.',
        'norm.': 'norm.',
        'head.': 'fc.',
    }

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.norm = nn.LayerNorm(in_channels, eps=1e-6)
        self.fc = nn.Linear(in_channels, num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, K)``."""
        return self.fc(self.norm(x.mean((2, 3))))
