"""Are the evaluator's numbers those of the reference, and does the metric report them under MMDetection's names?"""

import importlib

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from mmengine.structures import InstanceData
from pycocotools import mask as masks

import dense
from dense.errors import UserError

assert dense  # repairs mmcv, which the metric needs

SIZE = 96
CLASSES = ('bolt', 'nut', 'gear', 'pin')


def disc(x, y, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)


def rle_of(mask):
    rle = masks.encode(np.asfortranarray(mask))
    return dict(size=rle['size'], counts=rle['counts'].decode())


def box_of(mask):
    return [float(value) for value in masks.toBbox(masks.encode(np.asfortranarray(mask)))]


def generated(num_images=12, seed=0):
    """Truth with crowds, empty images and a class without truth; detections that are right, shifted, doubled, wrong."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, num_images + 1):
        for _ in range(0 if image == 3 else rng.integers(1, 6)):
            x, y, radius = *rng.uniform(20, 76, 2), rng.uniform(4, 19)
            category, crowd = int(rng.integers(1, 4)), int(rng.random() < 0.1)
            mask = disc(x, y, radius)
            item = dict(image_id=image, category_id=category, iscrowd=crowd, area=int(mask.sum()))
            truth.append(dict(item, id=len(truth) + 1, bbox=box_of(mask), segmentation=rle_of(mask)))
            for _ in range(rng.integers(0, 3)):
                shifted = disc(x + rng.normal(0, 2), y + rng.normal(0, 2), radius * rng.uniform(0.7, 1.2))
                label = category if rng.random() < 0.8 else int(rng.integers(1, 5))
                found.append(dict(image_id=image, category_id=label, score=round(rng.random(), 2), mask=shifted))
    images = [dict(id=i, height=SIZE, width=SIZE, file_name=f'{i}.jpg') for i in range(1, num_images + 1)]
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, categories=categories, annotations=truth), found


def crowd_of_scenes(num_images=400, per_image=42, seed=0):
    """A validation set of the size of a small one: 2800 objects of 80 classes, 16,800 detections with masks."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, num_images + 1):
        for _ in range(7):
            x, y, radius, category = *rng.uniform(20, 76, 2), rng.uniform(4, 19), int(rng.integers(1, 81))
            mask = disc(x, y, radius)
            item = dict(image_id=image, category_id=category, iscrowd=int(rng.random() < 0.02), area=int(mask.sum()))
            truth.append(dict(item, id=len(truth) + 1, bbox=box_of(mask), segmentation=rle_of(mask)))
            for i in range(per_image // 7):
                shifted = disc(*(np.array([x, y]) + rng.normal(0, 1 + 2 * i, 2)), radius * rng.uniform(0.7, 1.2))
                label = category if i < 3 else int(rng.integers(1, 81))
                found.append(dict(image_id=image, category_id=label, score=rng.random(), mask=shifted))
    images = [dict(id=i, height=SIZE, width=SIZE, file_name=f'{i}.jpg') for i in range(1, num_images + 1)]
    categories = [dict(id=i, name=f'class {i}') for i in range(1, 81)]
    return dict(images=images, categories=categories, annotations=truth), found


def as_results(found, iou_type):
    key, convert = ('bbox', box_of) if iou_type == 'bbox' else ('segmentation', rle_of)
    return [
        dict(image_id=f['image_id'], category_id=f['category_id'], score=f['score']) | {key: convert(f['mask'])}
        for f in found
    ]


def reference(truth, results, iou_type, max_dets=(1, 10, 100)):
    """pycocotools, with its own summary."""
    import contextlib
    import copy
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize('backend', ['faster', 'pycocotools'])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(3))
def test_twelve_numbers_are_the_references(seed, iou_type, backend):
    from dense.evaluation.coco import evaluate_coco

    truth, found = generated(seed=seed)
    results = as_results(found, iou_type)
    expected = reference(truth, results, iou_type)
    numbers, precision = evaluate_coco(truth, results, iou_type, backend=backend)
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-10)
    assert len(numbers) == 12 and 0.05 < numbers[0] < 0.95
    assert precision.shape == (10, 101, 4, 4, 3)


@pytest.mark.parametrize('backend', ['faster', 'pycocotools'])
def test_nothing_found_is_zero_and_no_truth_is_minus_one(backend):
    from dense.evaluation.coco import evaluate_coco

    truth, found = generated()
    numbers, _ = evaluate_coco(truth, [], 'segm', backend=backend)
    assert numbers[0] == 0 and numbers[8] == 0
    results = as_results(found, 'bbox')
    numbers, _ = evaluate_coco(dict(truth, annotations=[]), results, 'bbox', backend=backend)
    assert (numbers == -1).all()


def test_what_is_given_is_not_changed():
    import copy

    from dense.evaluation.coco import evaluate_coco

    truth, found = generated()
    results = as_results(found, 'segm')
    before = copy.deepcopy((truth, results))
    evaluate_coco(truth, results, 'segm')
    assert (truth, results) == before


def run_metric(truth, found, **options):
    """Feed a metric as the test loop does; the truth comes with the images."""
    metric = METRICS.build(dict(type='DenseCocoMetric', metric=['bbox', 'segm'], **options))
    metric.dataset_meta = dict(classes=CLASSES)
    for image in truth['images']:
        own = [f for f in found if f['image_id'] == image['id']]
        stack = np.array([f['mask'] for f in own], dtype=bool).reshape(-1, SIZE, SIZE)
        boxes = np.array([box_of(f['mask']) for f in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        prediction = InstanceData(
            bboxes=torch.from_numpy(boxes),
            scores=torch.tensor([f['score'] for f in own], dtype=torch.float64),
            labels=torch.tensor([f['category_id'] - 1 for f in own], dtype=torch.long),
            masks=torch.from_numpy(stack),
        )
        sample = dict(img_id=image['id'], ori_shape=(SIZE, SIZE), pred_instances=dict(prediction.all_items()))
        metric.process({}, [sample])
    return metric.evaluate(len(truth['images']))


def write_truth(truth, folder):
    import json

    (folder / 'truth.json').write_text(json.dumps(truth))
    return str(folder / 'truth.json')


@pytest.mark.parametrize('backend', ['faster', 'pycocotools'])
def test_metric(backend, tmp_path):
    import dense.evaluation.coco  # noqa: F401

    truth, found = generated()
    values = run_metric(truth, found, ann_file=write_truth(truth, tmp_path), backend=backend, classwise=True)
    for iou_type in ('bbox', 'segm'):
        expected = reference(truth, as_results(found, iou_type), iou_type)
        names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
        got = [values[f'coco/{iou_type}_{name}'] for name in names]
        np.testing.assert_allclose(got, expected[:6], rtol=0, atol=1e-10)
        assert len([key for key in values if key.startswith(f'coco/{iou_type}_') and 'precision' in key]) == 4


def test_all_twelve_by_name(tmp_path):
    import dense.evaluation.coco  # noqa: F401

    truth, found = generated()
    items = ['mAP', 'AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_l@100']
    values = run_metric(
        truth, found, ann_file=write_truth(truth, tmp_path), proposal_nums=(1, 10, 100), metric_items=items
    )
    expected = reference(truth, as_results(found, 'segm'), 'segm')
    got = [values[f'coco/segm_{item}'] for item in items]
    np.testing.assert_allclose(got, expected[[0, 6, 7, 8, 9, 11]], rtol=0, atol=1e-10)


@pytest.mark.parametrize('options', [dict(metric='box'), dict(backend='numpy'), dict(metric_items=['AP'])], ids=str)
def test_unknown_names_are_errors(options):
    from dense.evaluation.coco import DenseCocoMetric

    with pytest.raises(UserError, match='unknown'):
        DenseCocoMetric(**options)


@pytest.mark.slow
def test_the_default_takes_a_quarter_of_the_references_time_at_most():
    """Processor time, so that other work on the machine does not count; boxes and masks together."""
    import time

    from dense.evaluation.coco import evaluate_coco

    truth, found = crowd_of_scenes()
    results = {iou_type: as_results(found, iou_type) for iou_type in ('bbox', 'segm')}
    assert len(truth['annotations']) == 2800 and len(found) == 16_800
    spent, numbers = {}, {}
    for backend in ('faster', 'pycocotools', 'faster', 'pycocotools'):
        start = time.process_time()
        numbers[backend] = [evaluate_coco(truth, results[t], t, backend=backend)[0] for t in results]
        spent[backend] = min(spent.get(backend, np.inf), time.process_time() - start)
    np.testing.assert_allclose(numbers['faster'], numbers['pycocotools'], rtol=0, atol=1e-10)
    assert spent['pycocotools'] / spent['faster'] >= 4, spent


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('evaluation.coco.DenseCocoMetric', dict(metric=['bbox', 'segm'])),
        ('evaluation.mean_iou.DenseIoUMetric', dict(iou_metrics=['mIoU'])),
        ('classify.metric.TopAccuracy', {}),
    ],
)
def test_no_results_are_an_error_in_two_lines(name, options):
    module, _, kind = name.rpartition('.')
    metric = getattr(importlib.import_module(f'dense.{module}'), kind)(**options)
    metric.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(UserError, match=f'{kind} has no image to evaluate') as caught:
        metric.compute_metrics([])
    assert 'filter_cfg' in caught.value.remedy
