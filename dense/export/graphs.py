"""What an exported file computes: a backbone's maps, a segmentor's labels or logits.

A graph is a module with one input, a batch of images (of one image where it answers per image), and a fixed tuple of
tensors as its output. It holds the fused model (:mod:`dense.export.fuse_mmcv`), whose parts it calls; nothing in it
depends on an image's size or content except through tensors, so one recording serves every size.

Shapes: N batch, C channels, H and W height and width of the image.
"""

import sys
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import DenseBackbone
from dense.export.blocks import use_convolutions
from dense.export.fuse_mmcv import fuse_model


class ExportGraph(nn.Module):
    """A function of one image that can be recorded.

    Attributes:
        TASK: What the outputs are: ``features``, ``labels``, ``logits`` or ``instances``.
        INPUT: Name of the input.
        SMALLEST: Least height and width, in pixels: below it, the deepest map has one row, and a different program
            is recorded.
        ANY_BATCH: Whether the file takes any number of images at once instead of one.
    """

    TASK: ClassVar[str]
    INPUT: ClassVar[str] = 'image'
    SMALLEST: ClassVar[int] = 64
    ANY_BATCH: ClassVar[bool] = False

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """One name for each output."""

    @property
    @abstractmethod
    def output_dims(self) -> tuple[tuple[str | None, ...], ...]:
        """For each output, a name for each of its dimensions that depends on the input, None for a fixed one."""

    @property
    def task(self) -> str:
        """What the outputs are."""
        return self.TASK

    def signature(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Return the numbers by which two outputs for the same image are compared."""
        return torch.cat([output.detach().float().flatten() for output in outputs])


class BackboneGraph(ExportGraph):
    """The maps of a backbone.

    Args:
        backbone: In evaluation mode.
    """

    TASK = 'features'
    ANY_BATCH = True

    def __init__(self, backbone: DenseBackbone) -> None:
        super().__init__()
        self.backbone = fuse_model(backbone)
        use_convolutions(self.backbone)

    @property
    def output_names(self) -> tuple[str, ...]:
        """One name for each map, by its stride."""
        return tuple(f'stride{stride}' for stride in self.backbone.out_strides)

    @property
    def output_dims(self) -> tuple[tuple[str | None, ...], ...]:
        """Height and width of a map by its stride, such as ``height_8``."""
        return tuple(('batch', None, f'height_{stride}', f'width_{stride}') for stride in self.backbone.out_strides)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Turn normalised images ``(N, C, H, W)``, as the backbone itself takes them, into one map for each output."""
        return tuple(self.backbone(image))


class Normalize(nn.Module):
    """Normalises the values of an image as a model's data preprocessor does.

    Args:
        preprocessor: That of the model: mean and deviation of the channels, and whether images reach it as BGR.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        normalizes = bool(getattr(preprocessor, '_enable_normalize', False))
        for name, neutral in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name) if normalizes else torch.tensor(neutral)
            self.register_buffer(name, value.detach().clone().float().reshape(1, -1, 1, 1))
        # Images are read as BGR; a model that converts them expects RGB. MMSegmentation leaves the underscore out.
        converts = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False))
        self.takes_rgb = bool(converts)

    def forward(self, image: Tensor) -> Tensor:
        """Turn RGB, 0..255, ``(1, 3, H, W)``, into the values and the order that the model was trained with."""
        if not self.takes_rgb:
            image = image.flip(1)
        return (image - self.mean) / self.std


class SegmentorGraph(ExportGraph):
    """A whole segmentor: class of each pixel, or the scores of all classes.

    The whole image goes through the network at once, even if the config tests in sliding windows.

    Args:
        model: Segmentor with a ``decode_head``, in evaluation mode.
        logits: Return the scores.
    """

    def __init__(self, model: nn.Module, *, logits: bool = False) -> None:
        super().__init__()
        self.normalize = Normalize(model.get_submodule('data_preprocessor'))
        self.model: Any = fuse_model(model)
        use_convolutions(self.model)
        _replace_fixed_sizes(self.model)
        self.logits = logits

    @property
    def output_names(self) -> tuple[str, ...]:
        """``logits`` or ``labels``."""
        return (self.task,)

    @property
    def output_dims(self) -> tuple[tuple[str | None, ...], ...]:
        """As large as the image."""
        return ((None, None, 'height', 'width') if self.logits else (None, 'height', 'width'),)

    @property
    def task(self) -> str:
        """``logits`` or ``labels``."""
        return 'logits' if self.logits else 'labels'

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Turn RGB, 0..255, ``(1, 3, H, W)``, into labels ``(1, H, W)``, int64, or logits ``(1, classes, H, W)``."""
        head = self.model.decode_head
        logits = head(self.model.extract_feat(self.normalize(image)))
        size = image.shape[2:]
        logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=self.model.align_corners)
        if self.logits:
            return (logits,)
        if self.model.out_channels == 1:  # one class against the rest
            return ((logits.sigmoid() > head.threshold).squeeze(1).long(),)
        return (logits.argmax(dim=1),)


class AdaptiveAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products: ONNX has no such operation, and these work for every size.

    Args:
        output_size: Height and width of the output.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else output_size

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, *output_size)``."""
        rows, columns = (
            _bins(count, length, like=x) for count, length in zip(self.output_size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.t()


def _bins(count: int, length: int, *, like: Tensor) -> Tensor:
    """Return the share of ``length`` values in ``count`` bins, ``(count, length)``; neighbours may overlap."""
    index = torch.arange(count, device=like.device)[:, None]
    start, end = (index * length) // count, ((index + 1) * length + count - 1) // count
    values = torch.arange(length, device=like.device)[None]
    return ((values >= start) & (values < end)).to(like.dtype) / (end - start)


class Enlarge(nn.Module):
    """MMSegmentation's ``Upsample`` by a whole factor; the original turns sizes into plain numbers, which fixes them.

    Args:
        layer: The module to replace.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.factor = int(layer.scale_factor)
        self.mode, self.align_corners = layer.mode, layer.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, factor * H, factor * W)``."""
        size = [self.factor * side for side in x.shape[2:]]
        return F.interpolate(x, size=size, mode=self.mode, align_corners=self.align_corners)


def _replace_fixed_sizes(model: nn.Module) -> None:
    """Replace layers that cannot be recorded for every size with layers that can."""
    wrappers = sys.modules.get('mmseg.models.utils.wrappers')
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and not _keeps_a_side(child.output_size):
                setattr(module, name, AdaptiveAvgPool(child.output_size))
            elif wrappers is not None and isinstance(child, wrappers.Upsample) and _is_whole(child):
                setattr(module, name, Enlarge(child))


def _keeps_a_side(size: Any) -> bool:
    return size is None or (not isinstance(size, int) and None in size)


def _is_whole(layer: Any) -> bool:
    return not layer.size and float(layer.scale_factor or 0.5).is_integer()
