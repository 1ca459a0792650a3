"""A whole Mask R-CNN or Faster R-CNN as one graph: :class:`TwoStageGraph`.

The layers are the model's own. What MMDetection does between them with lists, in-place writes and Python branches is
written here as tensor operations. Numbers that depend on the image stay out of the shapes wherever possible: each
level gives as many proposals as the config allows, padded with boxes of score -1, which are
ignored. Only the candidates of the class-wise suppression and the detections themselves vary in number.

Shapes: R proposals, K detections, L levels of the pyramid, H and W height and width of the image.
"""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dense.errors import UserError
from dense.export.blocks import use_convolutions
from dense.export.fuse_mmcv import fuse_model
from dense.export.graphs import ExportGraph, Normalize

NOTHING = -1.0  # score of padding


class TwoStageGraph(ExportGraph):
    """A detector that finds proposals, then boxes and perhaps masks.

    Args:
        model: MMDetection's two-stage detector with an anchor-based RPN and one box head, in evaluation mode.

    Raises:
        UserError: A part of the detector is not supported.
    """

    TASK = 'instances'
    SMALLEST = 96  # the pyramid has a level of stride 64

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        _check(model)
        preprocessor: Any = model.get_submodule('data_preprocessor')
        self.normalize = Normalize(preprocessor)
        self.divisor = int(preprocessor.pad_size_divisor)
        self.model: Any = fuse_model(model)
        use_convolutions(self.model)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Boxes, scores, labels and, where the model has them, masks."""
        return ('boxes', 'scores', 'labels') + (('masks',) if self.model.roi_head.with_mask else ())

    @property
    def output_dims(self) -> tuple[tuple[str | None, ...], ...]:
        """One row for each detection."""
        sizes = {'boxes': 2, 'scores': 1, 'labels': 1, 'masks': 3}
        return tuple(('num_detections', *(None,) * (sizes[name] - 1)) for name in self.output_names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Find the objects of an image.

        Args:
            image: RGB, 0..255, shape ``(1, 3, H, W)``.

        Returns:
            Corners ``(K, 4)`` in pixels of the image, scores ``(K,)``, descending, labels ``(K,)`` from 0, and the
            probability of the object in each cell of a grid laid over its box, ``(K, 28, 28)``.
        """
        size = (image.shape[2], image.shape[3])
        maps = self.model.extract_feat(self._pad(self.normalize(image)))
        proposals, is_proposal = self._propose(maps, size)
        boxes, scores, labels = self._detect(maps, proposals, is_proposal, size)
        kept = (scores > NOTHING / 2).nonzero().squeeze(1)
        found = (boxes[kept], scores[kept], labels[kept])
        if not self.model.roi_head.with_mask:
            return found
        # One extra box, whose mask is dropped again: some layers and runtimes do not accept an empty batch.
        padded = torch.cat([kept, kept.new_zeros(1)])
        return (*found, self._masks(maps, boxes[padded], labels[padded])[:-1])

    def signature(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Return the scores only: rounding alone may swap boxes with nearly equal scores."""
        return F.pad(outputs[1], (0, self.model.roi_head.test_cfg.max_per_img - len(outputs[1])))

    def _pad(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        return F.pad(image, (0, -width % self.divisor, 0, -height % self.divisor))

    def _propose(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return proposals ``(R, 4)`` and which of them are real ``(R,)``."""
        head, config = self.model.rpn_head, self.model.rpn_head.test_cfg
        anchors = head.prior_generator.grid_priors([level.shape[2:] for level in maps], device=maps[0].device)
        levels = [
            _best(scores, deltas, priors, config.nms_pre, head.bbox_coder.encode_size)
            for scores, deltas, priors in zip(*head(maps), anchors, strict=True)
        ]
        scores, deltas, priors = (torch.cat(parts) for parts in zip(*levels, strict=True))
        groups = torch.arange(len(levels), device=scores.device).repeat_interleave(config.nms_pre)
        boxes = _clip(head.bbox_coder.decode(priors, deltas), size)
        extent = boxes[:, 2:] - boxes[:, :2]
        scores = torch.where((extent > config.min_bbox_size).all(dim=1), scores, NOTHING)
        scores, kept = _suppress(boxes, scores, groups, config.nms.iou_threshold, config.max_per_img, size)
        return boxes[kept], scores > NOTHING / 2

    def _detect(
        self, maps: tuple[Tensor, ...], proposals: Tensor, is_proposal: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes ``(M, 4)``, scores and labels ``(M,)``; M is the most detections that the config allows."""
        roi_head, config = self.model.roi_head, self.model.roi_head.test_cfg
        head = roi_head.bbox_head
        logits, deltas = head(_pool(roi_head.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(dim=1)[:, :-1]  # the last one is the background's
        per_class = 1 if head.reg_class_agnostic else head.num_classes
        boxes = _clip(head.bbox_coder.decode(proposals, deltas).view(-1, 4), size)
        boxes = boxes.view(-1, per_class, 4).expand(-1, head.num_classes, 4).reshape(-1, 4)
        is_candidate = (scores > config.score_thr) & is_proposal[:, None]
        candidates = is_candidate.flatten().nonzero().squeeze(1)
        # Padding boxes after the candidates, so that there are always enough to choose from.
        filler = config.max_per_img
        chosen = torch.cat([boxes[candidates], boxes.new_zeros(filler, 4)])
        values = torch.cat([scores.flatten()[candidates], scores.new_full((filler,), NOTHING)])
        labels = torch.cat([candidates % head.num_classes, candidates.new_zeros(filler)])
        values, kept = _suppress(chosen, values, labels, config.nms.iou_threshold, filler, size)
        return chosen[kept], values, labels[kept]

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return probabilities ``(K, 28, 28)`` for boxes ``(K, 4)`` and labels ``(K,)``."""
        roi_head = self.model.roi_head
        extractor = roi_head.bbox_roi_extractor if roi_head.share_roi_extractor else roi_head.mask_roi_extractor
        logits = roi_head.mask_head(_pool(extractor, maps, boxes))
        if roi_head.mask_head.class_agnostic:
            return logits[:, 0].sigmoid()
        index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index)[:, 0].sigmoid()


def _best(scores: Tensor, deltas: Tensor, priors: Tensor, count: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a level's best anchors: scores ``(count,)``, deltas ``(count, width)``, anchors ``(count, 4)``.

    Args:
        scores: Logits ``(1, A, h, w)``.
        deltas: ``(1, A * width, h, w)``.
        priors: ``(h * w * A, 4)``.
        count: How many; if a level has fewer, the rest are padding.
        width: Deltas per box.
    """
    scores = scores[0].permute(1, 2, 0).flatten().sigmoid()
    deltas = deltas[0].permute(1, 2, 0).reshape(-1, width)
    scores, index = torch.cat([scores, scores.new_full((count,), NOTHING)]).topk(count)
    index = index.clamp(max=priors.shape[0] - 1)
    return scores, deltas[index], priors[index]


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes ``(N, 4)`` to an image of height and width ``size``."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=1)


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, count: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Suppress boxes that overlap a better one of their group; boxes of other groups are moved out of the way.

    Args:
        boxes: Inside the image, ``(N, 4)``.
        scores: ``(N,)``.
        groups: Level or class, ``(N,)``, int64.
        iou_threshold: In [0, 1]; more is suppressed.
        count: How many to return, at most N.
        size: Height and width of the image.

    Returns:
        Scores ``(count,)``, descending, those of padding if fewer are left, and indices ``(count,)``.
    """
    step = torch.sym_max(*size) + 1
    moved = boxes + (groups * step).to(boxes.dtype)[:, None]
    kept = torchvision.ops.nms(moved, scores, iou_threshold)
    left = torch.full_like(scores, NOTHING).index_put((kept,), scores[kept])
    return left.topk(count)


def _pool(extractor: Any, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Return features ``(R, C, h, w)`` of boxes ``(R, 4)``, each from the level that its size belongs to."""
    rois = F.pad(boxes, (1, 0))  # the image index, 0, in front
    num_levels = extractor.num_inputs
    level_of = extractor.map_roi_levels(rois, num_levels)
    size = extractor.roi_layers[0].output_size
    pooled = boxes.new_zeros(boxes.shape[0], extractor.out_channels, *size)
    for level, (layer, features) in enumerate(zip(extractor.roi_layers, maps[:num_levels], strict=True)):
        index = (level_of == level).nonzero().squeeze(1)
        part = torchvision.ops.roi_align(
            features, rois[index], size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = pooled.index_put((index,), part)
    return pooled


def _check(model: Any) -> None:
    from mmdet.models import RPNHead, SingleRoIExtractor, StandardRoIHead

    remedy = 'export its backbone with --backbone; whole detectors are Mask R-CNN and Faster R-CNN with an RPN'
    parts = (getattr(model, 'rpn_head', None), RPNHead), (getattr(model, 'roi_head', None), StandardRoIHead)
    for part, allowed in parts:
        if type(part) is not allowed:
            raise UserError(f'cannot export a detector with {type(part).__name__} for {allowed.__name__}', remedy)
    extractors = [model.roi_head.bbox_roi_extractor]
    if model.roi_head.with_mask and not model.roi_head.share_roi_extractor:
        extractors.append(model.roi_head.mask_roi_extractor)
    layers = [layer for extractor in extractors for layer in extractor.roi_layers]
    suppressions = (model.rpn_head.test_cfg.nms, model.roi_head.test_cfg.nms)
    unknown = {
        'region extractor': any(type(extractor) is not SingleRoIExtractor for extractor in extractors),
        'pooling': any(getattr(layer, 'pool_mode', None) != 'avg' for layer in layers),
        'suppression': any(nms.get('type', 'nms') != 'nms' or nms.get('class_agnostic') for nms in suppressions),
        'number of proposals (nms_pre)': model.rpn_head.test_cfg.get('nms_pre', -1) <= 0,
        'activation of the RPN': not model.rpn_head.use_sigmoid_cls,
        'scores of the box head': bool(model.roi_head.bbox_head.custom_cls_channels),
    }
    for what, is_unknown in unknown.items():
        if is_unknown:
            raise UserError(f"cannot export this detector: its {what} differs from Mask R-CNN's", remedy)
