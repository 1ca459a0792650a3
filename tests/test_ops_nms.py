"""Does non-maximum suppression, called as models call it, do what its definition says?"""

import numpy as np
import pytest
import torch

from dense.compat import extension

extension.install()

import mmcv.ops  # noqa: E402
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]


def boxes_of(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 4) float32 corners and (N,) scores of a kind of input."""
    rng = np.random.default_rng(seed)
    number = {'one': 1, 'empty': 0}.get(kind, 60)
    corner, extent = rng.uniform(0, 60, (number, 2)), rng.uniform(1, 40, (number, 2))
    if kind == 'no_area':
        extent[::2] = 0
    if kind == 'whole_numbers':  # overlaps that equal the threshold exactly
        corner, extent = np.round(corner / 10) * 5, np.full((number, 2), 10.0)
    boxes = np.concatenate([corner, corner + extent], 1)
    if kind == 'identical':
        boxes[:] = boxes[0]
    if kind == 'inverted':
        boxes[::3] = boxes[::3][:, [2, 3, 0, 1]]
    if kind == 'negative':
        boxes -= 500
    scores = np.round(rng.uniform(size=number), 1) if kind == 'tied' else rng.permutation(number) / max(number, 1)
    return boxes.astype(np.float32), scores.astype(np.float32)


def iou_by_definition(a: np.ndarray, b: np.ndarray, offset: int) -> np.float32:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + np.float32(offset), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + np.float32(offset), np.float32(0))
    inter = width * height
    areas = [(box[2] - box[0] + np.float32(offset)) * (box[3] - box[1] + np.float32(offset)) for box in (a, b)]
    return np.float32(inter) / np.float32(areas[0] + areas[1] - inter) if inter > 0 else np.float32(0)


def nms_by_definition(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if not any(iou_by_definition(boxes[k], boxes[i], offset) > np.float32(threshold) for k in kept):
            kept.append(i)
    return kept


def soft_nms_by_definition(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, sigma: float, min_score: float, method: str, offset: int
) -> list[tuple[int, float]]:
    """Return index and new score of each kept box, one box at a time."""
    entries = [(i, np.float32(score)) for i, score in enumerate(scores)]
    for front in range(len(boxes)):
        if front >= len(entries):
            break
        best = max(range(front, len(entries)), key=lambda place: (entries[place][1], -place))
        entries[front], entries[best] = entries[best], entries[front]
        place = front + 1
        while place < len(entries):
            index, score = entries[place]
            iou = iou_by_definition(boxes[entries[front][0]], boxes[index], offset)
            if method == 'gaussian':
                score = score * np.exp(-(iou * iou) / np.float32(sigma))
            elif iou >= np.float32(threshold):
                score = score * (np.float32(0) if method == 'naive' else np.float32(1) - iou)
            entries[place] = index, score
            if score >= np.float32(min_score):
                place += 1
                continue
            last = entries.pop()
            if place < len(entries):
                entries[place] = last
    return [(index, float(score)) for index, score in entries]


KINDS = ['random', 'tied', 'empty', 'one', 'no_area', 'identical', 'inverted', 'negative', 'whole_numbers']
NMS_CASES = [(kind, threshold, offset) for kind in KINDS for threshold in (0.0, 1 / 3, 0.5, 1.0) for offset in (0, 1)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kind', 'threshold', 'offset'), NMS_CASES)
def test_nms_keeps_what_the_definition_keeps(kind: str, threshold: float, offset: int, device: str) -> None:
    boxes, scores = boxes_of(kind)
    dets, kept = nms(torch.tensor(boxes, device=device), torch.tensor(scores, device=device), threshold, offset)
    assert kept.tolist() == nms_by_definition(boxes, scores, threshold, offset)
    assert kept.dtype == torch.int64 and dets.shape == (len(kept), 5)
    np.testing.assert_array_equal(dets.cpu().numpy()[:, :4], boxes[kept.cpu().numpy()])


@pytest.mark.parametrize('seed', range(20))
def test_nms_on_random_boxes_with_a_score_threshold_and_a_maximum(seed: int) -> None:
    boxes, scores = boxes_of('random', seed)
    above = np.flatnonzero(scores > np.float32(0.3))
    expected = above[nms_by_definition(boxes[above], scores[above], 0.4, 0)][:5]
    _, kept = nms(boxes, scores, 0.4, score_threshold=0.3, max_num=5)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_every_floating_dtype(dtype: torch.dtype) -> None:
    boxes, scores = (torch.tensor(array).to(dtype) for array in boxes_of('random'))
    dets, kept = nms(boxes, scores, 0.5)
    expected = nms_by_definition(boxes.double().numpy(), scores.double().numpy(), 0.5, 0)
    assert kept.tolist() == expected and dets.dtype == dtype


def test_dets_carry_the_gradient_of_the_kept_boxes() -> None:
    boxes, scores = (torch.tensor(array).requires_grad_() for array in boxes_of('random'))
    dets, kept = nms(boxes, scores, 0.5)
    dets.sum().backward()
    expected = torch.zeros(len(boxes)).index_fill(0, kept, 1)
    assert torch.equal(scores.grad, expected) and torch.equal(boxes.grad, expected[:, None].expand(-1, 4))


SOFT_CASES = [
    (kind, method, offset) for kind in KINDS for method in ('naive', 'linear', 'gaussian') for offset in (0, 1)
]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kind', 'method', 'offset'), SOFT_CASES)
def test_soft_nms_lowers_scores_as_defined(kind: str, method: str, offset: int, device: str) -> None:
    boxes, scores = boxes_of(kind, seed=3)
    dets, kept = soft_nms(
        torch.tensor(boxes, device=device), torch.tensor(scores, device=device), 0.3, 0.5, 0.05, method, offset
    )
    expected = soft_nms_by_definition(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(dets[:, 4].cpu(), [score for _, score in expected], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(dets[:, :4].cpu(), boxes[kept.cpu().numpy()])
    assert str(dets.device).startswith(device)


def test_soft_nms_breaks_ties_by_place_after_swaps() -> None:
    # Four disjoint boxes: b and d share the best score. Taking b swaps it with a; then a d c remain by place: c, a, d.
    boxes = np.array([[x, 0, x + 5, 5] for x in (0, 10, 20, 30)], np.float32)
    _, kept = soft_nms(boxes, np.array([0.5, 0.9, 0.5, 0.9], np.float32), 0.3)
    assert kept.tolist() == [1, 3, 2, 0]
    # A dropped box's place goes to the last one: box 1 falls to 0, box 4 takes its place and precedes its equals.
    boxes = np.array([[0, 0, 5, 5], [0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 25, 5], [30, 0, 35, 5]], np.float32)
    _, kept = soft_nms(boxes, np.array([0.9, 0.8, 0.5, 0.5, 0.5], np.float32), 0.3, method='naive')
    assert kept.tolist() == [0, 4, 2, 3]


@pytest.mark.parametrize('kind', KINDS)
def test_nms_match_groups_what_each_kept_box_suppresses(kind: str) -> None:
    boxes, scores = boxes_of(kind)
    groups = nms_match(torch.tensor(np.concatenate([boxes, scores[:, None]], 1)), 0.4)
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    expected = []
    while left:
        hit = [i for i in left[1:] if iou_by_definition(boxes[left[0]], boxes[i], 0) >= np.float32(0.4)]
        expected.append([left[0], *hit])
        left = [i for i in left[1:] if i not in hit]
    assert [group.tolist() for group in groups] == expected


BATCHED_KINDS = ['random', 'tied', 'one', 'no_area', 'identical']
BATCHED_CASES = [(kind, split) for kind in BATCHED_KINDS for split in (1, 10000)]


@pytest.mark.parametrize(('kind', 'split'), BATCHED_CASES)
def test_batched_nms_keeps_classes_apart(kind: str, split: int) -> None:
    boxes, scores = boxes_of(kind)
    labels = np.arange(len(boxes)) % 3
    expected = [
        np.flatnonzero(labels == label)[nms_by_definition(boxes[labels == label], scores[labels == label], 0.5, 0)]
        for label in range(3)
    ]
    config = dict(type='nms', iou_threshold=0.5, split_thr=split)
    dets, kept = batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), config)
    assert sorted(kept.tolist()) == sorted(np.concatenate(expected).tolist())
    assert torch.all(dets[:-1, 4] >= dets[1:, 4])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('split', [1, 10000])
def test_batched_nms_in_half_precision_sees_the_boxes_extent(dtype: torch.dtype, split: int) -> None:
    # In half precision, boxes of class 79 shifted by 79 * 1025 would be infinite or have no extent.
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9], [1000, 1000, 1024, 1024]], dtype=dtype)
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=dtype), torch.tensor([79, 79, 79, 0])
    dets, kept = batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5, split_thr=split))
    assert kept.tolist() == [0, 1, 3] and dets.dtype == dtype and torch.equal(dets[:, :4], boxes[kept])


def test_batched_nms_still_names_its_origin() -> None:
    assert mmcv.ops.batched_nms.__module__ == 'mmcv.ops.nms'


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(mode: str, aligned: bool, offset: int) -> None:
    first, second = boxes_of('random', 1)[0][:20], boxes_of('no_area', 2)[0][:20]
    result = bbox_overlaps(torch.tensor(first), torch.tensor(second), mode, aligned, offset).numpy()
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            if aligned and i != j:
                continue
            expected = float(iou_by_definition(a, b, offset))
            if mode == 'iof' and expected:
                own = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
                other = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
                expected = expected * (own + other) / (1 + expected) / own
            assert result[(i,) if aligned else (i, j)] == pytest.approx(expected, abs=1e-5)
