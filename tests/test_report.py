"""Do the pictures show what they are given, for any size of image and any number of classes?"""

import itertools
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from dense.visualization.draw import (
    PANEL,
    PANEL_MAX,
    Objects,
    compare_labels,
    compare_objects,
    contact_sheet,
    draw_labels,
    draw_objects,
    save_picture,
)
from dense.visualization.hook import PictureHook, compare_sample

NAMES = ('ball', 'starfish', 'a class with quite a long name')
PALETTE = [(230, 60, 50), (250, 150, 30), (40, 150, 60)]
SIZES = ((160, 128), (65, 97), (480, 640), (1200, 300), (32, 32))


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def one_object(height: int, width: int, label: int = 0, score: float | None = None) -> Objects:
    mask = np.zeros((1, height, width), dtype=bool)
    top, bottom, left, right = height // 2, height * 3 // 4, width // 4, width // 2
    mask[0, top:bottom, left:right] = True
    box = np.array([[left, top, right, bottom]], dtype=np.float32)
    return Objects(box, np.array([label]), mask, None if score is None else np.array([score]))


def near(picture: np.ndarray, place: tuple[float, float], color: tuple[int, int, int]) -> float:
    """Return how far the pixel at a relative place (y, x) lies from a colour, largest channel."""
    y, x = (int(share * side) for share, side in zip(place, picture.shape[:2], strict=True))
    return float(np.abs(picture[y, x].astype(int) - np.array(color)).max())


@pytest.mark.parametrize('size', SIZES)
def test_an_object_is_tinted_where_it_is_and_nowhere_else(size: tuple[int, int]) -> None:
    picture = draw_objects(gray(*size), one_object(*size), names=NAMES, palette=PALETTE)
    tinted = tuple(round(0.5 * 128 + 0.5 * channel) for channel in PALETTE[0])
    assert near(picture, (0.7, 0.4), tinted) <= 2
    assert near(picture, (0.9, 0.9), (128, 128, 128)) == 0


@pytest.mark.parametrize('size', SIZES)
def test_labels_are_coloured_and_ignored_pixels_dark(size: tuple[int, int]) -> None:
    labels = np.full(size, 1, dtype=np.uint8)
    labels[:, : size[1] // 2] = 255
    picture = draw_labels(gray(*size), labels, palette=PALETTE, opacity=1.0)
    assert near(picture, (0.5, 0.9), PALETTE[1]) == 0
    assert picture[picture.shape[0] // 2, picture.shape[1] // 8].max() < 80


@pytest.mark.parametrize('size', SIZES)
def test_panels_are_neither_tiny_nor_huge(size: tuple[int, int]) -> None:
    panel = draw_objects(gray(*size), one_object(*size), names=NAMES, palette=PALETTE)
    assert max(panel.shape) <= PANEL_MAX
    assert min(panel.shape[:2]) >= PANEL or max(panel.shape) == PANEL_MAX
    assert panel.shape[0] / panel.shape[1] == pytest.approx(size[0] / size[1], rel=0.02)
    page = compare_objects(
        gray(*size), one_object(*size), one_object(*size, score=0.9), names=NAMES, palette=PALETTE, title='image.jpg'
    )
    assert page.dtype == np.uint8 and page.shape[1] > 3 * panel.shape[1] and page.shape[0] > panel.shape[0]


def test_uncertain_objects_are_left_out() -> None:
    objects = Objects(np.zeros((3, 4)), np.array([0, 1, 2]), None, np.array([0.9, 0.1, 0.5]))
    assert objects.above(0.3).labels.tolist() == [0, 2]
    assert Objects(objects.boxes, objects.labels).above(0.3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize('order', [[0, 1], [1, 0]])
def test_a_small_object_lies_on_top_of_a_large_one(order: list[int]) -> None:
    masks = np.zeros((2, 160, 160), dtype=bool)
    masks[0] = True
    masks[1, 100:120, 60:100] = True
    boxes = np.array([[0.0, 0.0, 160.0, 160.0], [60.0, 100.0, 100.0, 120.0]])
    objects = Objects(boxes[order], np.array([0, 1])[order], masks[order])
    picture = draw_objects(gray(160, 160), objects, names=NAMES, palette=PALETTE, opacity=1.0)
    assert near(picture, (110 / 160, 80 / 160), PALETTE[1]) == 0
    assert near(picture, (50 / 160, 80 / 160), PALETTE[0]) == 0


def test_a_score_changes_the_picture_and_a_low_one_hides_the_object() -> None:
    size, names = (160, 160), dict(names=NAMES, palette=PALETTE)
    pages = [
        compare_objects(gray(*size), one_object(*size), one_object(*size, score=score), **names)
        for score in (0.9, 0.8, 0.1)
    ]
    assert all((first != second).any() for first, second in itertools.combinations(pages, 2))


def test_no_object_and_boxes_without_masks_can_be_drawn() -> None:
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros((0, 160, 160), dtype=bool), np.zeros(0))
    boxes = Objects(np.array([[20.0, 40.0, 100.0, 120.0]]), np.array([1]))
    empty = draw_objects(gray(160, 160), nothing, names=NAMES, palette=PALETTE)
    boxed = draw_objects(gray(160, 160), boxes, names=NAMES, palette=PALETTE)
    assert (empty == 128).all()
    assert near(boxed, (80 / 160, 20 / 160), PALETTE[1]) <= 2 and near(boxed, (0.5, 0.4), (128,) * 3) == 0


def test_names_at_the_border_stay_inside() -> None:
    boxes = np.array([[0.0, 0.0, 30.0, 30.0], [130.0, 150.0, 160.0, 160.0]])
    picture = draw_objects(gray(160, 160), Objects(boxes, np.array([2, 2])), names=NAMES, palette=PALETTE)
    plates = (picture == np.array(PALETTE[2])).all(axis=2)
    assert plates[:10].sum() > 500 and plates[-60:, -150:].sum() > 500


def test_the_legend_names_what_occurs_and_wraps() -> None:
    truth = np.zeros((160, 160), dtype=np.uint8)
    few = compare_labels(gray(160, 160), truth, truth, names=NAMES, palette=PALETTE)
    many_names = tuple(f'class number {i}' for i in range(60))
    many_labels = (np.arange(160 * 160).reshape(160, 160) % 60).astype(np.uint8)
    many = compare_labels(gray(160, 160), many_labels, many_labels, names=many_names, palette=PALETTE * 20)
    assert many.shape[0] > few.shape[0] + 3 * 24 and many.shape[1] == few.shape[1]


@pytest.mark.parametrize('number', [1, 2, 5])
def test_a_sheet_holds_all_pictures(number: int, tmp_path: Path) -> None:
    pictures = [np.full((40 + 10 * i, 100, 3), 10 * i, dtype=np.uint8) for i in range(number)]
    sheet = contact_sheet(pictures, columns=2)
    for i in range(number):
        assert (sheet == 10 * i).all(axis=2).sum() == (40 + 10 * i) * 100
    path = save_picture(sheet, tmp_path / 'new' / 'sheet.png')
    assert (cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) == sheet).all()


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='at least one picture'):
        contact_sheet([])


class Dataset(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.paths)

    def get_data_info(self, index: int) -> dict[str, str]:
        return dict(img_path=self.paths[index])


def segmentation_sample(path: Path) -> BaseDataElement:
    truth, prediction = torch.zeros(1, 90, 120, dtype=torch.long), torch.ones(1, 90, 120, dtype=torch.long)
    truth[:, :5] = 255
    sample = BaseDataElement(metainfo=dict(img_path=str(path)))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=prediction)
    return sample


def detection_sample(path: Path) -> BaseDataElement:
    sample = BaseDataElement(metainfo=dict(img_path=str(path)))
    box, mask = torch.tensor([[10.0, 10.0, 50.0, 60.0]]), torch.zeros(1, 90, 120, dtype=torch.bool)
    mask[:, 10:60, 10:50] = True
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor([0]), masks=mask)
    sample.pred_instances = InstanceData(bboxes=box, labels=torch.tensor([1]), masks=mask, scores=torch.tensor([0.8]))
    return sample


@pytest.mark.parametrize('make', [segmentation_sample, detection_sample])
@pytest.mark.parametrize('is_gray', [False, True])
def test_the_hook_draws_both_kinds_of_samples(make, is_gray: bool, tmp_path: Path) -> None:
    path = tmp_path / 'photo.jpg'
    cv2.imwrite(str(path), gray(90, 120)[..., 0] if is_gray else gray(90, 120))
    dataset = Dataset(metainfo=dict(classes=NAMES), paths=[str(path)])
    runner = SimpleNamespace(rank=0, test_dataloader=SimpleNamespace(dataset=dataset))
    hook = PictureHook(str(tmp_path / 'out'), max_pictures=2)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, outputs=[make(path)])
    hook.after_test_epoch(runner)
    picture = cv2.imread(str(tmp_path / 'out' / 'photo.png'), cv2.IMREAD_COLOR_RGB)
    expected = compare_sample(make(path), dict(classes=NAMES))
    assert (picture == expected).all() and (tmp_path / 'out' / 'sheet.png').is_file()
    assert (expected != 255).mean() > 0.5
