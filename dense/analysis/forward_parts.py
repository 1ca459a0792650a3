"""Runs the parts of a detector, segmentor or classifier one after another, as publications count and time them.

Regions are given, not found: publications count 1000 for each box head and 100 for each mask head, and an untrained
model would find different ones with every backbone. NMS does not run.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

BOX_REGIONS, MASK_REGIONS = 1000, 100  # for one image
MAP_HEADS = ('rpn_head', 'bbox_head', 'mask_head', 'decode_head')  # which take all maps

# Name of a part, its module and its input -> its output.
Call = Callable[[str, nn.Module, Any], Any]
# Extractor of region features, feature maps (N, C, H, W), regions per image -> (N * regions, C', H', W').
Pool = Callable[[nn.Module, tuple[Tensor, ...], int], Tensor]


def run_parts(model: nn.Module, images: Tensor, *, call: Call, pool: Pool) -> None:
    """Run every part that is used after training, in order.

    Args:
        model: With a ``backbone`` and perhaps ``neck``, heads that take its maps, ``roi_head`` or a classifier's
            ``head``; or a backbone alone.
        images: Shape (N, C, H, W).
        call: Runs a part.
        pool: Returns the features of the requested number of regions.
    """
    if not hasattr(model, 'backbone'):
        call('model', model, images)
        return
    features = call('backbone', model.backbone, images)
    if getattr(model, 'neck', None) is not None:
        features = call('neck', model.neck, features)
    for part in MAP_HEADS:
        if getattr(model, part, None) is not None:
            call(part, getattr(model, part), features)
    if getattr(model, 'head', None) is not None:
        call('head', model.head, features[-1])  # a classifier's
    if getattr(model, 'roi_head', None) is not None:
        for part, head, extractor, num_regions in _region_heads(model.roi_head):
            call(part, head, pool(extractor, features, num_regions))


def _region_heads(roi_head: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module, int]]:
    for kind, num_regions in (('bbox', BOX_REGIONS), ('mask', MASK_REGIONS)):
        heads = _listed(getattr(roi_head, f'{kind}_head', None))
        extractors = _listed(getattr(roi_head, f'{kind}_roi_extractor', None))
        for i, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            yield f'{kind}_head{i if len(heads) > 1 else ""}', head, extractor, num_regions


def _listed(modules: Any) -> list[Any]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
