"""Parameters and multiply-accumulates (MACs) of a model, part by part, as papers count them.

The counter is PyTorch's own ``FlopCounterMode``: it sees the operators that really run (convolutions, matrix
products, attention) on any device, so a model on the meta device is counted without memory or arithmetic, and it
follows PyTorch's releases; fvcore, which most papers used, has not been maintained since 2022. One MAC is two of its
FLOPs. It does not know deformable convolution, so a handler here counts it. Norms, activations, additions,
interpolation and RoIAlign count as nothing, as they do in publications.

The papers' conventions:

- One image, evaluation mode, no pre- and postprocessing, no NMS.
- Two-stage detectors: 1000 regions for each box head, 100 for each mask head, at 1280x800.
- Segmentors: an auxiliary head's parameters count, its MACs do not, because it does not run after training. UperNet
  is counted at 512x2048, although trained on crops of 512x512.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dense.analysis.forward_parts import run_parts
from dense.analysis.published import COCO, PUBLISHED, UPERNET
from dense.console.output import quiet_libraries
from dense.console.tables import plain
from dense.engine.config import load_config
from dense.errors import UserError

PREPROCESSOR = 'data_preprocessor'
COCO_SCALE = (1333, 800)  # the longest sides of COCO's usual test size


@dataclass(frozen=True)
class Cost:
    """What one part of a model costs for one image.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates; 0 for a part that does not run after training.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one image.

    Attributes:
        name: Name of the config.
        shape: Height and width of the image in pixels.
        parts: Name of the part -> its cost, in the order in which they run.
    """

    name: str
    shape: tuple[int, int]
    parts: dict[str, Cost]

    @property
    def params(self) -> int:
        """Parameters of all parts."""
        return sum(part.params for part in self.parts.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(part.macs for part in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """Return numbers and names for JSON, with the sums of all parts."""
        return {**asdict(self), 'params': self.params, 'macs': self.macs}

    def __str__(self) -> str:
        return '\n'.join([f'{self.name} at {self.shape[0]}x{self.shape[1]}', *self._lines()])

    def _lines(self) -> Iterator[str]:
        rows = [[name, f'{part.params / 1e6:.2f}', f'{part.macs / 1e9:.2f}'] for name, part in self.parts.items()]
        rows.append(['total', f'{self.params / 1e6:.2f}', f'{self.macs / 1e9:.2f}'])
        row = PUBLISHED.get(self.name)
        row = row if row is not None and row.shape == self.shape else None
        if row is not None and (row.params or row.macs):
            rows.append([f'published {row.source}', str(row.params or '-'), str(row.macs or '-')])
        if row is not None and (row.derived_params or row.derived_macs):
            rows.append(['from the published code', str(row.derived_params or '-'), str(row.derived_macs or '-')])
        yield plain(rows, header=['part', 'parameters M', 'MACs G'])
        if row is not None and row.undercount:
            yield f'The published count {row.undercount}.'


def config_complexity(path: str | Path, shape: tuple[int, int] | None = None) -> Complexity:
    """Count the model of a config, on the meta device.

    Args:
        path: Config file, relative to the current folder or else to the project.
        shape: Height and width of the image; by default that of :func:`usual_shape`.

    Raises:
        UserError: There is no such file, or the model is of a kind that cannot be counted.
    """
    cfg = load_config(path)
    return count_model(build_on_meta(cfg), shape or usual_shape(cfg), name=Path(cfg.filename).stem)


def overview(counts: Sequence[Complexity]) -> str:
    """Return one line for each count, grouped by image size."""
    lines = []
    for shape in dict.fromkeys(count.shape for count in counts):
        rows = [[c.name, f'{c.params / 1e6:.2f}', f'{c.macs / 1e9:.2f}'] for c in counts if c.shape == shape]
        lines.append(plain(rows, header=[f'at {shape[0]}x{shape[1]}', 'params M', 'MACs G']))
    return '\n\n'.join(lines)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build a config's model in evaluation mode, without memory for its parameters."""
    with quiet_libraries(), torch.device('meta'):
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        # Some of mmcv's layers ignore the device when they create their weights.
        return MODELS.build(cfg.model).eval().to('meta')


def usual_shape(cfg: Config) -> tuple[int, int]:
    """Return the height and width in pixels at which publications count a config's model.

    This is the size of the published figure if there is one; else 800x1280 for COCO's usual test size, 512x2048 for
    UperNet on crops of 512x512, and otherwise the size of the config: its crop, or the scale of test images.

    Raises:
        UserError: The config does not give a size.
    """
    row = PUBLISHED.get(Path(cfg.filename or '').stem)
    if row is not None:
        return row.shape
    size = cfg.model.get(PREPROCESSOR, {}).get('size')
    if size is not None:
        is_upernet = cfg.model.get('decode_head', {}).get('type') == 'UPerHead' and tuple(size) == (512, 512)
        return UPERNET if is_upernet else (size[0], size[1])
    dataset = cfg.get('val_dataloader', {}).get('dataset', {})
    if 'size' in dataset.get('transform', {}):
        return _pair(dataset.transform.size)
    for step in dataset.get('pipeline', []):
        if step.get('type') == 'Resize' and 'scale' in step:
            width, height = step.scale
            return COCO if (width, height) == COCO_SCALE else (height, width)
    raise UserError('the config does not say how large its images are', 'set the size with --shape HEIGHT WIDTH')


def count_model(model: nn.Module, shape: tuple[int, int], *, in_channels: int = 3, name: str = '') -> Complexity:
    """Count a detector, segmentor or classifier of the OpenMMLab kind, or a backbone alone.

    Args:
        model: In evaluation mode, on any device.
        shape: Height and width of the image in pixels.
        in_channels: Channels of the image.
        name: Name for the result.

    Raises:
        UserError: The model has a part that cannot be counted.
    """
    image = torch.empty(1, in_channels, *shape, device=next(model.parameters()).device)
    parts: dict[str, Cost] = {}

    def count(part: str, module: nn.Module, given: Any) -> Any:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            output = module(given)
        parts[part] = Cost(_num_params(module), counter.get_total_flops() // 2)
        return output

    with torch.no_grad():
        run_parts(model, image, call=count, pool=_empty_regions)
    if getattr(model, 'auxiliary_head', None) is not None:
        parts['auxiliary_head'] = Cost(_num_params(model.auxiliary_head), 0)  # does not run after training
    _check_all_counted(model, sum(part.params for part in parts.values()))
    return Complexity(name, shape, parts)


def _empty_regions(extractor: Any, features: tuple[torch.Tensor, ...], num_regions: int) -> torch.Tensor:
    """Return an empty tensor for the features of regions; RoIAlign itself counts as nothing."""
    size = _pair(extractor.roi_layers[0].output_size)
    return features[0].new_empty(num_regions, extractor.out_channels, *size)


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_all_counted(model: nn.Module, counted: int) -> None:
    total = _num_params(model)
    if counted != total:
        raise UserError(
            f'{total - counted} of {total} parameters of {type(model).__name__} are in parts that cannot be counted; '
            f'its parts: {", ".join(name for name, _ in model.named_children())}',
            'count models made of backbone, neck, RPN, box, mask, decode and classification heads',
        )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _deform_conv_flops(
    input_shape: Sequence[int], weight_shape: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any
) -> int:
    """Count a deformable convolution as the plain one of its size, as publications do: 2 for each product.

    Args:
        input_shape: (N, C, H, W), unused: the output's size counts.
        weight_shape: (O, C / groups, KH, KW).
        args: Offsets, masks and geometry, whose bilinear samples count nothing.
        out_shape: (N, O, H', W').
        kwargs: Geometry.
    """
    batch, _, height, width = out_shape
    return 2 * batch * height * width * prod(weight_shape)


# The counter does not know operators from outside PyTorch.
FORMULAS = {torch.ops.torchvision.deform_conv2d: _deform_conv_flops}
