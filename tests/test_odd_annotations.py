"""Does a run say what is odd in its annotations before the first step, and is the metric on them the reference's?"""

import contextlib
import copy
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dense
from dense.data.annotations import check_annotations
from dense.data.check_samples import check_samples
from dense.data.rle import decode_lengths, encode
from dense.errors import UserError
from dense.evaluation.coco import DenseCocoMetric

assert dense  # repairs mmcv

SIZE = 64
NAN, INF = float('nan'), float('inf')
Content = dict[str, Any]
Change = Callable[[Content], None]


def content() -> Content:
    """Three images of 64 x 64 pixels with four objects of two classes, one of them a crowd with run lengths."""
    squares = [(1, 1, 4, 6, 20), (2, 2, 10, 12, 30), (3, 1, 30, 20, 16), (2, 1, 40, 40, 20)]
    annotations = []
    for number, (image, category, x, y, side) in enumerate(squares, 1):
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        shape = dict(bbox=[x, y, side, side], area=side * side, segmentation=[polygon], iscrowd=0)
        annotations.append(dict(id=number, image_id=image, category_id=category, **shape))
    crowd = np.zeros((SIZE, SIZE), bool)
    crowd[40:60, 40:60] = True
    annotations[3].update(iscrowd=1, segmentation=encode(crowd))
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=SIZE, width=SIZE) for i in (1, 2, 3)],
        annotations=annotations,
        categories=[dict(id=1, name='bolt'), dict(id=2, name='nut')],
    )


def put(*places: int, of: str = 'annotations', **values: Any) -> Change:
    def change(target: Content) -> None:
        for place in places:
            target[of][place].update(copy.deepcopy(values))

    return change


def remove(key: str, *places: int, of: str = 'annotations') -> Change:
    def change(target: Content) -> None:
        for place in places:
            del target[of][place][key]

    return change


def again(place: int, of: str = 'annotations', **values: Any) -> Change:
    return lambda target: target[of].append(dict(copy.deepcopy(target[of][place]), **values))


def drop_list(key: str) -> Change:
    return lambda target: target.pop(key)


def as_text(target: Content) -> None:
    for row in target['images']:
        row['id'] = str(row['id'])
    for row in target['annotations']:
        row.update(image_id=str(row['image_id']), category_id=float(row['category_id']))


RUNS = dict(size=[SIZE, SIZE], counts=[SIZE * SIZE])
ALL = range(4)
# what is odd, and what the error says
ERRORS: dict[str, tuple[Change, str]] = {
    'NaN box': (put(0, bbox=[1, NAN, 3, 3]), r'1 boxes hold NaN or infinity \(annotation 1 of 1\.jpg\)'),
    'infinite boxes': (put(0, 2, bbox=[1, 2, INF, 3]), r'2 boxes hold NaN .*annotation 1 of 1\.jpg, annotation 3 of 3'),
    'negative size': (put(1, bbox=[20, 20, -5, 8]), r'1 boxes have a negative width or height \(annotation 2 of 2'),
    'three numbers': (put(1, bbox=[20, 20, 5]), r'1 boxes are not four numbers'),
    'text in a box': (put(1, bbox=[20, 20, '5', 5]), r'1 boxes are not four numbers'),
    'endless number': (put(1, bbox=[20, 20, 10**400, 5]), r'1 boxes are not four numbers'),
    'no box': (remove('bbox', 0), r'1 of 4 annotations lack "bbox"'),
    'no width': (remove('width', 0, of='images'), r'1 of 3 images lack "width" \(1\.jpg\)'),
    'width 0': (
        put(2, of='images', width=0),
        r'1 of 3 images have a "width" or "height" outside 1 to 1048576 \(3\.jpg\)',
    ),
    'width NaN': (put(2, of='images', width=NAN), r'"width" that is not a whole number'),
    'image id twice': (again(0, of='images', file_name='9.jpg'), r'1 images share their "id" with .* \(1\)'),
    'image id a word': (put(0, of='images', id='first'), r'1 of 3 images have a "id" that is not a whole number'),
    'image id huge': (put(0, of='images', id=2**70), r'1 of 3 images have a "id" that is not a whole number'),
    'file name a number': (put(0, of='images', file_name=7), r'1 images have a "file_name" that is not a text'),
    'category id twice': (again(0, of='categories', name='pin'), r'1 categories share their "id"'),
    'category name twice': (
        again(0, of='categories', id=3),
        r'1 category names stand for two categories each \(bolt\)',
    ),
    'unknown images only': (put(*ALL, image_id=77), r'4 annotations \(all of them\) name an image that the file does'),
    'unknown categories only': (put(*ALL, category_id=77), r'4 annotations \(all of them\) name a category'),
    'flag': (put(0, iscrowd='no'), r'1 annotations have an "iscrowd" that is neither 0 nor 1'),
    'NaN polygon': (put(0, segmentation=[[1, 2, NAN, 4, 5, 6]]), r'1 masks hold NaN or infinity \(annotation 1\)'),
    'polygon of text': (put(0, segmentation=[['1', '2']]), r'1 masks have polygons that are not lists of numbers'),
    'flat polygon': (put(0, segmentation=[1, 2, 3, 4, 5, 6]), r'1 masks have polygons that are not lists of numbers'),
    'polygon in another unit': (put(0, segmentation=[[1, 2, 9e9, 4, 5, 6]]), r'further outside than 10 images'),
    'mask a text': (put(0, segmentation='x'), r'1 masks are neither polygons nor run lengths'),
    'run lengths of another size': (put(0, segmentation=dict(RUNS, size=[2, 2])), r'not of the size of their image'),
    'run lengths too long': (put(0, segmentation=dict(RUNS, counts=[9999])), r'that do not fill their image'),
    'run lengths damaged': (put(0, segmentation=dict(RUNS, counts='~~')), r'run lengths that cannot be read'),
    'no images': (drop_list('images'), r'no list "images"'),
    'empty images': (lambda target: target['images'].clear(), r'the list "images" .* is empty'),
    'no categories': (drop_list('categories'), r'no list "categories"'),
    'annotations as an object': (lambda target: target.update(annotations={}), r'no list "annotations" of objects'),
}

# what is odd, what a notice says, and ids and boxes of what is left
NOTICES: dict[str, tuple[Change, str, list[int]]] = {
    'ids as text': (as_text, r'3 images write "id" as text or with a point', [1, 2, 3, 4]),
    'image twice': (again(0, of='images'), r'1 images are listed twice, .* read once \(1\)', [1, 2, 3, 4]),
    'annotation twice': (again(1), r'1 annotations are listed twice, .* once \(2\)', [1, 2, 3, 4]),
    'annotation id twice': (again(1, image_id=3), r'1 annotations share an id .*numbered anew \(2\)', [1, 2, 3, 4, 5]),
    'annotation id 0': (put(0, id=0), r'1 annotations share an id .* have the id 0: numbered anew \(0\)', [5, 2, 3, 4]),
    'no annotation id': (remove('id', 0, 2), r'2 annotations have no id: numbered', [5, 2, 6, 4]),
    'unknown image': (put(2, image_id=77), r'1 annotations are left out: .* their image \(77\)', [1, 2, 4]),
    'unknown category': (put(2, category_id=77), r'1 annotations are left out: .* their category \(77\)', [1, 2, 4]),
    'no area': (remove('area', *ALL), r'4 annotations have no area: computed \(1, 2, 3, \.\.\.\)', [1, 2, 3, 4]),
    'NaN area': (put(0, area=NAN), r'1 annotations have no area: computed', [1, 2, 3, 4]),
    'area 0': (put(0, area=0), r'1 annotations have the area 0 or less: training leaves them out', [1, 2, 3, 4]),
    'no flag': (remove('iscrowd', 1), r'1 annotations have no "iscrowd": taken as 0', [1, 2, 3, 4]),
    'box of width 0': (put(0, bbox=[4, 6, 0, 20]), r'1 boxes of width or height 0 are left out', [2, 3, 4]),
    'box outside': (put(0, bbox=[100, 6, 20, 20]), r'1 boxes lie outside their images and are left out', [2, 3, 4]),
    'box partly outside': (put(0, bbox=[-9, 6, 20, 200]), r'1 boxes lie partly outside .* are clipped', [1, 2, 3, 4]),
    'thin box': (put(0, bbox=[4, 6, 0.5, 20]), r'1 boxes are thinner than a pixel', [1, 2, 3, 4]),
    'two points': (put(0, segmentation=[[1, 2, 3, 4]]), r'1 masks have a polygon with less than three', [1, 2, 3, 4]),
}  # fmt: skip


@pytest.mark.parametrize('name', ERRORS)
def test_what_only_its_author_can_repair_is_an_error(name: str) -> None:
    change, expected = ERRORS[name]
    odd = content()
    change(odd)
    with pytest.raises(UserError, match=expected) as caught:
        check_annotations(odd, 'data/instances.json')
    assert caught.value.cause.startswith(('data/instances.json', 'the list')) and caught.value.remedy
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize('name', NOTICES)
def test_what_can_mean_one_thing_only_is_repaired_and_counted(name: str) -> None:
    change, expected, ids = NOTICES[name]
    odd = content()
    change(odd)
    repaired, notices = check_annotations(odd, 'data/instances.json')
    assert [row['id'] for row in repaired['annotations']] == ids
    text = '\n'.join(notices)
    assert text.startswith('instances.json: ')
    assert re.search(expected, text), text
    assert len(repaired['images']) == 3 and {type(row['id']) for row in repaired['images']} == {int}
    same, silent = check_annotations(copy.deepcopy(repaired), 'x')
    assert same == repaired and not [line for line in silent if 'training leaves' not in line]


def test_clean_annotations_pass_untouched() -> None:
    clean = content()
    assert check_annotations(copy.deepcopy(clean), 'x') == (clean, [])


def test_everything_is_said_at_once() -> None:
    odd = content()
    put(0, bbox=[1, NAN, 3, 3])(odd)
    put(1, bbox=[1, 2, -3, 3])(odd)
    with pytest.raises(UserError, match=r'1 boxes hold NaN .*; 1 boxes have a negative'):
        check_annotations(odd, 'x')


def test_clipped_boxes_and_computed_areas_are_right() -> None:
    odd = content()
    put(0, bbox=[-9, 6, 20, 200])(odd)
    remove('area', *ALL)(odd)
    repaired, _ = check_annotations(odd, 'x')
    assert repaired['annotations'][0]['bbox'] == [0, 6, 11, SIZE - 6]
    expected = [row['area'] for row in content()['annotations']]
    assert [row['area'] for row in repaired['annotations']] == expected


def test_boxes_that_reach_out_by_rounding_stay_as_they_are() -> None:
    odd = content()
    put(0, bbox=[50.3, 6, 14.2, 20])(odd)
    repaired, notices = check_annotations(odd, 'x')
    assert repaired['annotations'][0]['bbox'] == [50.3, 6, 14.2, 20] and notices == []


@pytest.mark.parametrize('seed', range(20))
def test_run_lengths_are_read_as_pycocotools_reads_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = cv2.blur(rng.random((*rng.integers(1, 300, 2),)), (5, 5)) > rng.uniform(0.4, 0.6)
    packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = decode_lengths(packed['counts'])
    values = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(mask.shape, order='F')
    np.testing.assert_array_equal(values, mask)
    np.testing.assert_array_equal(decode_lengths(lengths.tolist()), lengths)


@pytest.mark.parametrize('counts', ['\x01', 'o', 'ooooooooooo0', '0A', 7, None, [1, -2], [1.5], ['1'], '\u20ac'])
def test_damaged_run_lengths_are_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match=r'run length'):
        decode_lengths(counts)


def found_objects() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    found = []
    for row in content()['annotations']:
        for label in (1, 2):
            x, y, width, height = np.array(row['bbox']) + rng.normal(0, 1.5, 4)
            found.append(
                dict(image_id=row['image_id'], category_id=label, score=rng.random(), bbox=[x, y, width, height])
            )
    return found


def reference(truth: Content) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(found_objects()), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


def by_metric(truth: Content, folder: Path) -> list[float]:
    path = folder / 'truth.json'
    path.write_text(json.dumps(truth))
    metric = METRICS.build(dict(type='DenseCocoMetric', metric='bbox', ann_file=str(path)))
    metric.dataset_meta = dict(classes=('bolt', 'nut'))
    for image in (1, 2, 3):
        own = [row for row in found_objects() if row['image_id'] == image]
        boxes = torch.tensor([row['bbox'] for row in own], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        objects = dict(
            bboxes=boxes,
            scores=torch.tensor([row['score'] for row in own], dtype=torch.float64),
            labels=torch.tensor([row['category_id'] - 1 for row in own]),
        )
        metric.process({}, [dict(img_id=image, ori_shape=(SIZE, SIZE), pred_instances=objects)])
    return list(metric.evaluate(3).values())


# What the reference cannot read (a missing field, text for a number) or takes for something else (an id twice, the
# id 0) is completed for it as the table says.
FOR_REFERENCE = ('area', 'flag', 'text', 'id')


@pytest.mark.parametrize('name', NOTICES)
def test_the_metric_is_the_references(name: str, tmp_path: Path) -> None:
    change, *_ = NOTICES[name]
    odd = content()
    change(odd)
    truth = odd
    if any(word in name for word in FOR_REFERENCE) and name != 'area 0':
        truth, _ = check_annotations(copy.deepcopy(odd), 'x', as_truth=True)
    elif 'twice' in name:
        truth = content()
    np.testing.assert_allclose(by_metric(odd, tmp_path), reference(truth), rtol=0, atol=1e-10)


def test_a_metric_of_masks_needs_masks(tmp_path: Path) -> None:
    odd = content()
    remove('segmentation', 0)(odd)
    (tmp_path / 'truth.json').write_text(json.dumps(odd))
    with pytest.raises(UserError, match=r'1 annotations have no mask \(1\)'):
        DenseCocoMetric(ann_file=str(tmp_path / 'truth.json'), metric='segm')
    DenseCocoMetric(ann_file=str(tmp_path / 'truth.json'), metric='bbox')


class Listed:
    """A built data set of objects."""

    def __init__(self, infos: list[dict[str, Any]], with_mask: bool = True) -> None:
        self.infos = infos
        self.pipeline = SimpleNamespace(transforms=[SimpleNamespace(with_mask=with_mask)])

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return self.infos[index]


def photo(folder: Path, *items: dict[str, Any], height: int = 40, width: int = 60) -> dict[str, Any]:
    path = folder / 'photo.jpg'
    cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    return dict(img_path=str(path), height=height, width=width, instances=list(items))


GOOD, CROWD, BARE = dict(mask=[[1] * 6], ignore_flag=0), dict(mask=[[1] * 6], ignore_flag=1), dict(mask=[[]])


def test_data_without_objects_is_no_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for infos, cause in (
        ([], r'holds no object to learn from$'),
        ([photo(tmp_path)], r'holds no object to learn from$'),
        ([photo(tmp_path, CROWD), photo(tmp_path)], r'no object to learn from: all 1 are crowds'),
        ([photo(tmp_path, BARE)], r'none of the 1 objects of the training data has a mask'),
    ):
        with pytest.raises(UserError) as caught:
            check_samples(Listed(infos), is_training=True)
        assert re.search(cause, caught.value.cause)
        check_samples(Listed(infos))  # a metric may be asked for anyway
    check_samples(Listed([photo(tmp_path, BARE)], with_mask=False), is_training=True)
    check_samples(Listed([photo(tmp_path, BARE, GOOD)]), is_training=True)
    assert '1 of 2 objects have no mask and are ignored in training: in photo.jpg' in capsys.readouterr().out


def test_wrong_sizes_are_an_error(tmp_path: Path) -> None:
    check_samples(Listed([photo(tmp_path, GOOD)]))
    with pytest.raises(UserError, match=r'1 of the 1 images have another .*photo\.jpg, 60 x 40 instead of 40 x 60'):
        check_samples(Listed([photo(tmp_path, GOOD, height=60, width=40)]))


@pytest.mark.slow
def test_a_hundred_thousand_images_take_seconds() -> None:
    """As many rows as COCO's training set, with polygons of 25 points."""
    rng = np.random.default_rng(0)
    polygon = rng.uniform(0, 480, 50).round(2).tolist()
    images = [dict(id=7 * i, file_name=f'{i}.jpg', height=480, width=640) for i in range(118_287)]
    annotations = [
        dict(id=i, image_id=7 * (i % 118_287), category_id=i % 80, bbox=[5.5, 6.5, 70.25, 80], iscrowd=0, area=99.5,
             segmentation=[list(polygon)])
        for i in range(1, 860_001)
    ]  # fmt: skip
    categories = [dict(id=i, name=f'class {i}') for i in range(80)]
    start = time.process_time()
    _, notices = check_annotations(dict(images=images, annotations=annotations, categories=categories), 'x')
    assert notices == []
    assert time.process_time() - start < 15
