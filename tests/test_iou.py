"""Are the areas and the mean IoU those of MMSegmentation's metric and of a published example? Is counting fast?"""

import time

import numpy as np
import pytest
import torch
from leaves import BY_NAME, load, parts_of
from mmengine.registry import METRICS, init_default_scope

import dense
from dense.evaluation.mean_iou import DenseIoUMetric

assert dense  # repairs mmcv, which the metrics need

IGNORED = 255


def label_maps(seed, num_classes, shape=(64, 85), patch=16, noise=0.2, ignored=0.1):
    """Prediction and truth: patches of classes, a share of them wrong, and ignored pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (shape[0] // patch + 1, shape[1] // patch + 1))
    truth = np.kron(coarse, np.ones((patch, patch), dtype=np.int64))[: shape[0], : shape[1]]
    wrong = rng.random(shape) < noise
    found = np.where(wrong, rng.integers(0, num_classes, shape), truth)
    truth = np.where(rng.random(shape) < ignored, IGNORED, truth)
    return torch.from_numpy(found), torch.from_numpy(truth)


def reference_areas(found, truth, num_classes, ignore_index):
    from mmseg.evaluation.metrics import IoUMetric

    return IoUMetric.intersect_and_union(found, truth, num_classes, ignore_index)


# Number of classes, values that are changed (which map, from, to), ignored value.
MAPS = {
    'ADE20K': (150, [], IGNORED),
    'two classes': (2, [], IGNORED),
    'classes without truth': (30, [('truth', 3, IGNORED), ('truth', 4, 5), ('found', 7, 8)], IGNORED),
    'class in neither map': (30, [('truth', 3, 4), ('found', 3, 4)], IGNORED),
    'all ignored': (2, [('truth', 0, IGNORED), ('truth', 1, IGNORED)], IGNORED),
    'predictions that are no class': (6, [('found', 2, IGNORED), ('found', 3, -1), ('found', 4, 6)], IGNORED),
    'truth that is no class': (6, [('truth', 2, 200), ('truth', 3, -1), ('truth', 4, 6)], IGNORED),
    'a class is ignored': (6, [], 0),
    'a negative value is ignored': (6, [('truth', 2, -1)], -1),
    'negative values beside it': (
        6,
        [('truth', 2, -100), ('truth', 4, -101), ('found', 5, -100)],
        -100,
    ),
}


@pytest.mark.parametrize('dtype', [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize('case', MAPS)
def test_areas_are_the_references(case, dtype):
    num_classes, changes, ignore_index = MAPS[case]
    maps = dict(zip(('found', 'truth'), label_maps(len(case), num_classes), strict=True))
    for which, old, new in changes:
        maps[which][maps[which] == old] = new
    maps = {name: values.to(dtype) for name, values in maps.items()}
    before = {name: values.clone() for name, values in maps.items()}
    areas = DenseIoUMetric.intersect_and_union(maps['found'], maps['truth'], num_classes, ignore_index)
    expected = reference_areas(maps['found'], maps['truth'], num_classes, ignore_index)
    for got, wanted in zip(areas, expected, strict=True):
        assert got.shape == (num_classes,) and got.dtype == torch.float64
        np.testing.assert_array_equal(got.numpy(), wanted.numpy())
    assert (expected[0].sum() > 0) == (case != 'all ignored')
    assert all(torch.equal(maps[name], before[name]) for name in maps), 'the maps are not to be changed'


def test_one_class():
    """The reference takes its range from the data here; by definition 2 pixels are found, 2 true, 1 of them in both."""
    found, truth = torch.tensor([[0, 0, 0, 5]]), torch.tensor([[0, IGNORED, 7, 0]])
    areas = DenseIoUMetric.intersect_and_union(found, truth, 1, IGNORED)
    assert [area.tolist() for area in areas] == [[1], [3], [2], [2]]


def sample(found, truth, path='a/photo.jpg', **meta):
    return dict(pred_sem_seg=dict(data=found[None]), gt_sem_seg=dict(data=truth[None]), img_path=path, **meta)


def evaluate(metric, samples, num_classes):
    init_default_scope('mmseg')
    built = METRICS.build(metric)
    built.dataset_meta = dict(classes=[f'class {i}' for i in range(num_classes)])
    for one in samples:
        built.process({}, [one])
    return built.evaluate(len(samples))


def test_published_example():
    """The example of a widely used library's mean IoU: three maps, ten classes, absent ones count as 0."""
    found = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    truth = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    maps = [(torch.tensor(f), torch.tensor(t)) for f, t in zip(found, truth, strict=True)]
    areas = [DenseIoUMetric.intersect_and_union(*pair, num_classes=10, ignore_index=IGNORED) for pair in maps]
    intersection, union, _, label = (sum(parts) for parts in zip(*areas, strict=True))
    by_class = np.nan_to_num((intersection / union).numpy())
    np.testing.assert_allclose(by_class, [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1], atol=1e-12)
    accuracy = np.nan_to_num((intersection / label).numpy())
    np.testing.assert_allclose(accuracy, [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1], atol=1e-12)
    assert intersection.sum() / label.sum() == pytest.approx(0.5263157894736842)
    values = evaluate(dict(type='DenseIoUMetric', nan_to_num=0), [sample(*pair) for pair in maps], 10)
    assert values == dict(aAcc=52.63, mIoU=47.75, mAcc=59.17)


OPTIONS = [
    {},
    dict(iou_metrics=['mIoU', 'mDice', 'mFscore']),
    dict(iou_metrics=['mFscore'], beta=2, nan_to_num=0),
    dict(ignore_index=3, prefix='val'),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_metric_reports_what_the_reference_does(options):
    samples = [sample(*label_maps(seed, 12)) for seed in range(4)]
    values = evaluate(dict(type='DenseIoUMetric', **options), samples, 12)
    expected = evaluate(dict(type='mmseg.IoUMetric', **options), samples, 12)
    # The reference rounds in single precision, to two places.
    assert values == pytest.approx(expected, abs=1e-5) and list(values) == list(expected)
    assert all(5 < value < 95 for value in values.values())


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_label_maps_are_written(reduce_zero_label, tmp_path):
    from PIL import Image

    found, truth = label_maps(0, 12)
    metric = dict(type='DenseIoUMetric', format_only=True, output_dir=str(tmp_path / 'out'))
    assert evaluate(metric, [sample(found, truth, reduce_zero_label=reduce_zero_label)], 12) == {}
    written = np.asarray(Image.open(tmp_path / 'out' / 'photo.png'))
    np.testing.assert_array_equal(written, found.numpy() + reduce_zero_label)


SEGMENTORS = sorted(name for name in BY_NAME if parts_of(name)['method'] in ('upernet', 'semantic-fpn'))


@pytest.mark.parametrize('name', SEGMENTORS)
def test_every_segmentor_uses_it(name):
    cfg = load(name)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator == dict(type='DenseIoUMetric', iou_metrics=['mIoU'])
    assert 'dense.evaluation.mean_iou' in cfg.custom_imports.imports


@pytest.mark.slow
def test_no_slower_than_a_bincount():
    """Processor time of one thread on maps of ADE20K's usual size, interleaved, medians."""

    def bincount(found, truth):
        """The usual confusion matrix."""
        found, truth = found.numpy(), truth.numpy()
        counts = truth != IGNORED
        return np.bincount(150 * truth[counts] + found[counts], minlength=150 * 150).reshape(150, 150)

    found, truth = label_maps(0, 150, shape=(512, 683), patch=32)
    ways = {
        'ours': lambda: DenseIoUMetric.intersect_and_union(found, truth, 150, IGNORED),
        'bincount': lambda: bincount(found, truth),
        'reference': lambda: reference_areas(found, truth, 150, IGNORED),
    }
    np.testing.assert_array_equal(ways['ours']()[0], bincount(found, truth).diagonal())
    spent = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(41):
            for name, way in ways.items():
                start = time.process_time()
                way()
                spent[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    medians = {name: float(np.median(seconds)) for name, seconds in spent.items()}
    assert medians['ours'] <= 1.1 * medians['bincount'], medians
    assert medians['ours'] <= 0.5 * medians['reference'], medians
