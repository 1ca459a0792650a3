"""Are the classes read from the user's own data, in both layouts, and do the labels have the meaning in the file?"""

import json

import cv2
import numpy as np
import pytest

import dense  # noqa: F401  the OpenMMLab packages run only after it
from dense.data.classes import LabelClasses, class_palette, read_coco_classes, read_folder_classes
from dense.errors import UserError


def classes(*names: str, first_value: int = 1, palette: list | None = None) -> LabelClasses:
    return LabelClasses(names, first_value, tuple(palette or class_palette(len(names))))


GOOD_FOLDER = {
    'names': (['cat', 'dog'], classes('cat', 'dog')),
    'from one': ([dict(index=1, name='cat'), dict(index=2, name='dog')], classes('cat', 'dog')),
    'from zero': ([dict(index=0, name='cat'), dict(index=1, name='dog')], classes('cat', 'dog', first_value=0)),
    'unsorted, more keys': (
        [dict(index=2, name='dog', color=[1, 2, 3]), dict(index=1, name='cat')],
        classes('cat', 'dog', palette=[class_palette(2)[0], (1, 2, 3)]),
    ),
    'one class': (['road'], classes('road')),
}
BAD_FOLDER = {
    'gap': ([dict(index=1, name='cat'), dict(index=3, name='dog')], r'\[1, 3\]'),
    'from two': ([dict(index=2, name='cat'), dict(index=3, name='dog')], r'\[2, 3\]'),
    'twice the value': ([dict(index=1, name='cat'), dict(index=1, name='dog')], r'\[1, 1\]'),
    'twice the name': (['cat', 'dog', 'cat'], 'names cat more than once'),
    'no names': ([dict(index=1, label='cat')], 'neither a list of names nor'),
    'no colour': ([dict(index=1, name='cat', color=[0, 0, 256])], 'neither a list of names nor'),
    'a dict': (dict(cat=1), 'neither a list of names nor'),
    'a number': (3, 'neither a list of names nor'),
    'empty': ([], r'label values in .* are \[\]'),
}
BAD_COCO = {
    'no categories': (dict(images=[]), 'no list "categories"'),
    'no name': (dict(categories=[dict(id=1)]), 'no list "categories"'),
    'empty': (dict(categories=[]), 'is empty'),
    'twice': (dict(categories=[dict(id=1, name='cat'), dict(id=2, name='cat')]), 'names cat more than once'),
    'a list': ([1], 'no list "categories"'),
}


def two_lines(error):
    return len(str(error.value).splitlines()) == 2 and error.value.remedy


@pytest.mark.parametrize('case', GOOD_FOLDER)
def test_folder_classes(case, tmp_path):
    content, expected = GOOD_FOLDER[case]
    (tmp_path / 'classes.json').write_text(json.dumps(content))
    assert read_folder_classes(tmp_path) == expected


@pytest.mark.parametrize('case', BAD_FOLDER)
def test_bad_folder_classes(case, tmp_path):
    content, message = BAD_FOLDER[case]
    (tmp_path / 'classes.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_folder_classes(tmp_path)
    assert two_lines(error)


@pytest.mark.parametrize('text', [None, '{', ''])
def test_missing_or_broken_file(text, tmp_path):
    if text is not None:
        (tmp_path / 'classes.json').write_text(text)
    with pytest.raises(UserError, match=r'classes\.json') as error:
        read_folder_classes(tmp_path)
    assert two_lines(error)
    with pytest.raises(UserError, match=r'classes\.json') as error:
        read_coco_classes(tmp_path / 'classes.json')
    assert two_lines(error)


def test_coco_classes_keep_the_order_of_the_file(tmp_path):
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(dict(categories=[dict(id=7, name='nut'), dict(id=3, name='bolt')])))
    assert read_coco_classes(path) == ('nut', 'bolt')


@pytest.mark.parametrize('case', BAD_COCO)
def test_bad_coco_classes(case, tmp_path):
    content, message = BAD_COCO[case]
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_coco_classes(path)
    assert two_lines(error)


@pytest.mark.parametrize('number', [1, 4, 150])
def test_palette(number):
    colors = class_palette(number)
    assert len(set(colors)) == number
    assert all(0 <= value <= 255 for color in colors for value in color)


@pytest.mark.parametrize('first_value', [0, 1])
def test_label_maps_mean_what_the_file_says(first_value, tmp_path):
    from mmengine.registry import init_default_scope

    from dense.data.seg_folder import SegFolderDataset

    init_default_scope('mmseg')
    rows = [dict(index=first_value + i, name=f'part {i}') for i in range(3)]
    (tmp_path / 'classes.json').write_text(json.dumps(rows))
    labels = np.random.default_rng(0).integers(0, 3 + first_value, (32, 48)).astype(np.uint8)
    labels[0] = 255
    for folder, name, picture in (('images', 'a.jpg', labels), ('annotations', 'a.png', labels)):
        (tmp_path / folder / 'training').mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / 'training' / name), picture)
    dataset = SegFolderDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    )
    assert dataset.metainfo['classes'] == ('part 0', 'part 1', 'part 2')
    assert SegFolderDataset.read_classes(dict(data_root=tmp_path)) == dataset.metainfo['classes']
    found = dataset[0]['data_samples'].gt_sem_seg.data[0].numpy()
    expected = labels.astype(int) - first_value
    expected[(labels < first_value) | (labels == 255)] = 255
    np.testing.assert_array_equal(found, expected)


def test_folder_without_images_is_an_error(tmp_path):
    from dense.data.seg_folder import SegFolderDataset

    (tmp_path / 'classes.json').write_text('["cat"]')
    with pytest.raises(UserError, match=r'no file \*\.jpg in .*images/training') as error:
        SegFolderDataset(
            data_root=str(tmp_path), data_prefix=dict(img_path='images/training', seg_map_path='x'), pipeline=[]
        )
    assert two_lines(error)


def test_coco_categories_become_the_classes(tmp_path):
    from dense.data.coco_folder import CocoFolderDataset

    box = dict(bbox=[2, 2, 20, 20], segmentation=[[2, 2, 22, 2, 22, 22, 2, 22]], area=400, iscrowd=0, image_id=1)
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=32, width=48)],
        annotations=[dict(box, id=1, category_id=3), dict(box, id=2, category_id=7)],
        categories=[dict(id=7, name='nut'), dict(id=3, name='bolt')],
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    config = dict(data_root=str(tmp_path), ann_file='ann.json', data_prefix=dict(img='images/'))
    dataset = CocoFolderDataset(**config, pipeline=[])
    assert dataset.metainfo['classes'] == CocoFolderDataset.read_classes(config) == ('nut', 'bolt')
    labels = [instance['bbox_label'] for instance in dataset.get_data_info(0)['instances']]
    assert [dataset.metainfo['classes'][label] for label in labels] == ['bolt', 'nut']
    assert len(dataset.metainfo['palette']) == 2
