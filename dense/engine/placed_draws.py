"""Random numbers of single samples within a model, drawn by the sample's place in the global batch.

Legend: W processes with N samples each; sample p of process r has place p * W + r in the global batch.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.dist import get_dist_info
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn

from dense.randomness import REGIONS, current_step, randomness_at

_ELEMENTS = (nn.Dropout,)
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def place_samplers(model: nn.Module) -> None:
    """Let the samplers of a detector's regions draw for each image by its place, in any number of processes.

    How much a sampler draws depends on the image, so that every image needs numbers of its own. A sampler is called
    once for each image of a batch, in order.

    Args:
        model: Its samplers are changed in place.
    """
    for number, sampler in enumerate(_region_samplers(model)):
        if not isinstance(sampler.sample, _PlacedSample):
            sampler.sample = _PlacedSample(sampler.sample, number)


def _region_samplers(model: nn.Module) -> Iterator[Any]:
    seen = set()
    for module in model.modules():
        for value in vars(module).values():
            for item in value if isinstance(value, list | tuple) else [value]:
                if hasattr(item, '_sample_pos') and id(item) not in seen:  # the mark of mmdet's samplers
                    seen.add(id(item))
                    yield item


class _PlacedSample:
    """The method ``sample`` of a region sampler, seeded for the image that it is called for."""

    def __init__(self, sample: Callable[..., Any], number: int) -> None:
        self._sample = sample
        self._number = number
        self._step: tuple[int, ...] = ()
        self._calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._step != current_step():
            self._step, self._calls = current_step(), 0
        rank, world_size = get_dist_info()
        place = self._calls * world_size + rank
        self._calls += 1
        with randomness_at(REGIONS, self._number, place):
            return self._sample(*args, **kwargs)


def share_noise(model: nn.Module) -> None:
    """Let drop path and dropout draw for the global batch and use the rows of this process's samples.

    The generators of all processes stay in the same state. Not for one process, whose batch is the global one.

    Args:
        model: Its layers are changed in place. The first dimension of their maps counts samples.
    """
    for layer in model.modules():
        shape = _shape_of_noise(layer)
        if shape is not None and not isinstance(layer.forward, functools.partial):
            layer.forward = functools.partial(_own_rows, layer.forward, shape, layer)


def _shape_of_noise(layer: nn.Module) -> Callable[[Tensor], tuple[int, ...]] | None:
    """Return the function from a map to the shape of one sample's noise, or None if the layer draws none."""
    if isinstance(layer, _ELEMENTS):
        return lambda x: tuple(x.shape[1:])
    if isinstance(layer, _CHANNELS):
        return lambda x: (x.shape[1], *[1] * (x.ndim - 2))
    if isinstance(layer, tuple(filter(None, (DropPath, MODELS.get('DropPath'))))):
        return lambda x: (1,) * (x.ndim - 1)
    return None


def _own_rows(
    forward: Callable[[Tensor], Tensor], shape: Callable[[Tensor], tuple[int, ...]], layer: nn.Module, x: Tensor
) -> Tensor:
    if not layer.training:
        return forward(x)
    rank, world_size = get_dist_info()
    noise = forward(x.new_ones(len(x) * world_size, *shape(x)))  # all of these layers multiply their input
    return x * noise[rank::world_size]
