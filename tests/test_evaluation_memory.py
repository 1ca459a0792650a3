"""Does the memory of a COCO evaluation grow only by its results: numbers and run lengths, no dense masks?"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as masks

import dense
from dense.benchmark.hardware import memory_use
from dense.evaluation.coco import DenseCocoMetric

assert dense  # repairs mmcv, which the metric needs

STATUS = Path('/proc/self/status')
CPU = torch.device('cpu')
HEIGHT, WIDTH, PER_IMAGE, NUM_CLASSES = 480, 640, 30, 80
BEFORE_LIMIT = 2000  # boxes of an image before the limit on detections, of which the detector returns a slice


def blobs(seed, height, width):
    """Masks (PER_IMAGE, height, width) of ellipses with wavy edges, their boxes, classes and scores."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    found = []
    for _ in range(PER_IMAGE):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle = np.arctan2(rows - y, columns - x)
        radius = height * rng.uniform(0.04, 0.25) * (1 + 0.15 * np.sin(rng.integers(3, 9) * angle))
        found.append(((columns - x) / rng.uniform(0.7, 1.4)) ** 2 + (rows - y) ** 2 < radius**2)
    stack = np.array(found)
    boxes = masks.toBbox([masks.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in stack])
    boxes[:, 2:] += boxes[:, :2]
    return stack, boxes.astype(np.float32), rng.integers(0, NUM_CLASSES, PER_IMAGE), rng.random(PER_IMAGE)


def data_sample(image_id, stack, boxes, labels, scores):
    """What a detector gives: tensors of its own for each image, boxes and scores sliced out of all candidates."""
    candidates = torch.zeros(BEFORE_LIMIT, 5)
    candidates[:PER_IMAGE, :4], candidates[:PER_IMAGE, 4] = torch.from_numpy(boxes), torch.from_numpy(scores)
    kept = candidates[:PER_IMAGE]
    found = dict(
        bboxes=kept[:, :4], scores=kept[:, 4], labels=torch.from_numpy(labels), masks=torch.from_numpy(stack).clone()
    )
    return dict(img_id=image_id, ori_shape=stack.shape[1:], pred_instances=found)


def write_truth(path, scenes, num_images):
    """A third of the objects of each scene, whose pictures follow one another in turn."""
    shapes = [objects_of(*scene[:3]) for scene in scenes]
    found = [dict(item, image_id=i) for i in range(1, num_images + 1) for item in shapes[i % len(scenes)]]
    annotations = [dict(item, id=number) for number, item in enumerate(found, 1)]
    images = [dict(id=i, height=HEIGHT, width=WIDTH, file_name=f'{i}.jpg') for i in range(1, num_images + 1)]
    categories = [dict(id=i, name=f'class {i}') for i in range(1, NUM_CLASSES + 1)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def objects_of(stack, boxes, labels):
    found = []
    for mask, (x, y, right, bottom), label in zip(stack[::3], boxes[::3].tolist(), labels[::3].tolist(), strict=True):
        rle = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        shape = dict(segmentation=dict(size=rle['size'], counts=rle['counts'].decode()), area=int(mask.sum()))
        found.append(dict(shape, bbox=[x, y, right - x, bottom - y], category_id=label + 1, iscrowd=0))
    return found


def size_of(value):
    """Bytes of a result with all that it holds."""
    if isinstance(value, np.ndarray):
        return sys.getsizeof(value)  # with its data, where they are its own
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    inside = sum(size_of(part) for part in parts) if isinstance(value, dict | list | tuple) else 0
    return sys.getsizeof(value) + inside


def metric_for(ann_file):
    metric = DenseCocoMetric(ann_file=str(ann_file), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=[f'class {i}' for i in range(1, NUM_CLASSES + 1)])
    return metric


def test_what_is_kept_is_its_own(tmp_path):
    scenes = [blobs(0, HEIGHT // 4, WIDTH // 4)]
    write_truth(tmp_path / 'truth.json', scenes, 1)
    metric = metric_for(tmp_path / 'truth.json')
    metric.process({}, [data_sample(1, *scenes[0])])
    ((_, kept),) = metric.results
    for key in ('bboxes', 'scores', 'labels'):
        assert kept[key].base is None and len(kept[key]) == PER_IMAGE
    assert all(isinstance(mask['counts'], bytes) for mask in kept['masks'])
    assert size_of(kept) < 1024 * PER_IMAGE


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not STATUS.is_file(), reason='the resident memory is read from /proc')
def test_memory_of_5000_images_stays_flat(tmp_path):
    """150,000 masks of 480x640: between image 500 and 5000 memory grows by what was kept, and by no dense mask."""
    scenes = [blobs(seed, HEIGHT, WIDTH) for seed in range(10)]
    write_truth(tmp_path / 'truth.json', scenes, 5000)
    metric = metric_for(tmp_path / 'truth.json')
    at = {}
    for image in range(1, 5001):
        metric.process({}, [data_sample(image, *scenes[image % len(scenes)])])
        if image in (500, 5000):
            at[image], _ = memory_use(CPU)
    grown = (at[5000] - at[500]) / 4500
    kept = np.mean([size_of(result) for result in metric.results[500:]])
    dense_masks = PER_IMAGE * HEIGHT * WIDTH
    values = metric.evaluate(5000)
    figures = dict(
        grown_per_image=grown, kept_per_image=kept, dense_masks_per_image=dense_masks,
        before_evaluation=at[5000], peak=memory_use(CPU)[1], segm_mAP=values['coco/segm_mAP'],
    )  # fmt: skip
    print(figures)  # shown by pytest -s
    # What the objects take by themselves, and half as much again for the allocator; the candidates of the boxes alone
    # would be more than that, one image's dense masks 350 times as much.
    assert grown <= 1.5 * kept, figures
    assert grown <= dense_masks / 100, figures
    assert 0 < values['coco/bbox_mAP'] <= 1 and 0 < values['coco/segm_mAP'] <= 1, figures
