"""Is the mini data set reproducible, do its two views agree, and does it have the special cases of real data?"""

import hashlib
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dense.data.mini import CLASSES, PALETTE, SPLITS, THING_CLASSES, MiniData, write_crops, write_mini
from dense.errors import UserError

NUM_TRAIN, NUM_VAL = 30, 16
NUMBERS = dict(zip(SPLITS, (NUM_TRAIN, NUM_VAL), strict=True))


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> MiniData:
    return write_mini(tmp_path_factory.mktemp('mini'), num_train=NUM_TRAIN, num_val=NUM_VAL)


@pytest.fixture(scope='module')
def cocos(data: MiniData) -> dict[str, COCO]:
    return {split: COCO(str(data.root / f'instances_{split}.json')) for split in SPLITS}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_of(data: MiniData, split: str, file_name: str) -> np.ndarray:
    path = data.root / 'annotations' / split / Path(file_name).with_suffix('.png')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8 and labels.ndim == 2
    return labels


def test_same_seed_gives_same_bytes_over_leftovers_too(tmp_path: Path) -> None:
    write_mini(tmp_path / 'a', 5, num_train=4, num_val=2)
    write_mini(tmp_path / 'b', 6, num_train=5, num_val=3)  # leftovers of another, larger run
    other = digests(tmp_path / 'b')
    write_mini(tmp_path / 'b', 5, num_train=4, num_val=2)
    first, second = digests(tmp_path / 'a'), digests(tmp_path / 'b')
    assert len(first) == 2 * (4 + 2) + 3
    assert first == second
    assert all(first[name] != other[name] for name in first if name.startswith('images'))


def test_a_smaller_set_is_the_start_of_a_larger_one(tmp_path: Path) -> None:
    small = write_mini(tmp_path / 'small', num_train=2, num_val=1).root
    large = write_mini(tmp_path / 'large', num_train=3, num_val=2).root
    for path in small.glob('images/*/*.jpg'):
        assert path.read_bytes() == (large / path.relative_to(small)).read_bytes()


def test_no_image_occurs_twice_and_the_splits_differ(data: MiniData) -> None:
    images = [digest for name, digest in digests(data.root / 'images').items()]
    assert len(images) == NUM_TRAIN + NUM_VAL == len(set(images))


@pytest.mark.parametrize('split', SPLITS)
def test_area_and_box_are_those_of_the_segmentation(cocos: dict[str, COCO], split: str) -> None:
    coco = cocos[split]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        rle = coco.annToRLE(annotation)
        rows, cols = np.nonzero(coco_mask.decode(rle))
        assert annotation['area'] == len(rows) == coco_mask.area(rle) > 0
        x, y, width, height = annotation['bbox']
        # Within a pixel: pycocotools derives boxes from run lengths, NumPy from single pixels.
        np.testing.assert_allclose(
            [x, y, x + width, y + height], [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1], atol=1
        )


@pytest.mark.parametrize('split', SPLITS)
def test_label_maps_agree_with_instances(data: MiniData, cocos: dict[str, COCO], split: str) -> None:
    coco = cocos[split]
    assert len(coco.imgs) == NUMBERS[split]
    for image in coco.imgs.values():
        labels = labels_of(data, split, image['file_name'])
        assert labels.shape == (image['height'], image['width'])
        things = np.zeros_like(labels)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            agreeing = (labels[mask] == annotation['category_id']).mean()
            assert agreeing > 0.9, f'{image["file_name"]}: object {annotation["id"]} agrees in {agreeing:.0%}'
            things[mask] = 1
        painted = (labels >= 1) & (labels <= len(THING_CLASSES))
        assert np.logical_and(things, painted).sum() >= 0.93 * painted.sum()


@pytest.mark.parametrize('split', SPLITS)
def test_files_have_the_sizes_that_the_annotations_say(data: MiniData, cocos: dict[str, COCO], split: str) -> None:
    channels = set()
    for image in cocos[split].imgs.values():
        picture = cv2.imread(str(data.root / 'images' / split / image['file_name']), cv2.IMREAD_UNCHANGED)
        assert picture.shape[:2] == (image['height'], image['width'])
        assert min(picture.shape[:2]) >= 128 and max(picture.shape[:2]) <= 192
        channels.add(picture.ndim)
    assert channels == {2, 3}, 'grayscale and colour files'


@pytest.mark.parametrize('split', SPLITS)
def test_the_special_cases_of_real_data_are_there(cocos: dict[str, COCO], split: str) -> None:
    coco = cocos[split]
    annotations = list(coco.anns.values())
    empty = [i for i in coco.imgs if not coco.getAnnIds(i)]
    odd = [image for image in coco.imgs.values() if image['height'] % 2 and image['width'] % 2]
    kinds = {type(annotation['segmentation']) for annotation in annotations}
    crowds = [annotation for annotation in annotations if annotation['iscrowd']]
    assert empty and odd and kinds == {list, dict}
    assert crowds and all(isinstance(crowd['segmentation'], dict) for crowd in crowds)
    assert max(a['area'] for a in annotations) > 8 * min(a['area'] for a in annotations)


@pytest.mark.parametrize('split', SPLITS)
def test_objects_hide_parts_of_each_other_but_share_no_pixel(cocos: dict[str, COCO], split: str) -> None:
    coco, touching = cocos[split], 0
    for image_id in coco.imgs:
        masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(image_id))]
        for first, second in itertools.combinations(masks, 2):
            # Polygons follow the outline to half a pixel, so neighbours may overlap by their rims.
            assert np.logical_and(first, second).sum() <= 0.12 * min(first.sum(), second.sum())
            touching += bool(np.logical_and(cv2.dilate(first, np.ones((5, 5))), second).any())
    assert touching > 0


@pytest.mark.parametrize('split', SPLITS)
def test_every_class_occurs_and_has_a_name(data: MiniData, cocos: dict[str, COCO], split: str) -> None:
    categories = {category['id']: category['name'] for category in cocos[split].cats.values()}
    assert categories == dict(enumerate(THING_CLASSES, start=1))
    assert {annotation['category_id'] for annotation in cocos[split].anns.values()} == set(categories)
    values = [np.unique(labels_of(data, split, image['file_name'])) for image in cocos[split].imgs.values()]
    assert set(np.concatenate(values)) == set(range(len(CLASSES) + 1)), 'every class, and 0 for unlabelled'


def test_there_are_enough_kinds_with_different_names_and_colours(data: MiniData) -> None:
    table = json.loads((data.root / 'classes.json').read_text())
    assert [row['index'] for row in table] == list(range(1, len(CLASSES) + 1))
    assert [row['name'] for row in table] == list(CLASSES)
    kinds = [row['kind'] for row in table]
    assert kinds.count('thing') == len(THING_CLASSES) >= 6 and kinds.count('stuff') >= 3
    assert len(set(CLASSES)) == len(CLASSES) == len(set(PALETTE))


def test_counts_are_those_of_the_files(data: MiniData, cocos: dict[str, COCO]) -> None:
    assert data.num_images == NUMBERS
    assert data.num_instances == {split: len(coco.anns) for split, coco in cocos.items()}


def test_crops_are_one_folder_per_class(tmp_path: Path) -> None:
    write_crops(tmp_path / 'a', num_per_class=3, side=48)
    write_crops(tmp_path / 'b', num_per_class=3, side=48)
    assert {path.name for path in (tmp_path / 'a').iterdir()} == set(THING_CLASSES)
    assert len(digests(tmp_path / 'a')) == 3 * len(THING_CLASSES)
    assert digests(tmp_path / 'a') == digests(tmp_path / 'b')
    assert cv2.imread(str(tmp_path / 'a' / 'fish' / '00001.jpg')).shape == (48, 48, 3)


@pytest.mark.parametrize('numbers', [dict(num_train=0), dict(num_val=-1)])
def test_a_set_without_images_is_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match='at least 1 image'):
        write_mini(tmp_path, **numbers)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        write_mini(tmp_path / 'file', num_train=1, num_val=1)
