"""Does each tested image get its own picture, under a name that says which image it is?"""

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData

from dense.visualization.hook import PictureHook
from dense.visualization.names import picture_names

CASES = {
    'different stems': (['a/1.jpg', 'b/2.jpg'], ['1', '2']),
    'one stem in two folders': (['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg'], ['a-1', 'a-2', 'b-1', 'b-2']),
    'a hyphen in place of a folder': (['a-b/1.jpg', 'a/b-1.jpg', 'a/b/1.jpg'], ['a-b/1', 'a/b-1', 'a/b/1']),
    'one stem in one folder': (['1.jpg', '1.png'], ['1.jpg', '1.png']),
    'only the case differs': (['a/X.jpg', 'b/x.jpg'], ['a-X', 'b-x']),
    'called as the sheet is': (['sheet.jpg', 'other.jpg'], ['sheet.jpg', 'other.jpg']),
    'called as the sheet of a process': (['a/Sheet-1.jpg', 'b/other.jpg'], ['a-Sheet-1', 'b-other']),
    'sheets of two folders': (['a/sheet.jpg', 'b/sheet.jpg'], ['a-sheet', 'b-sheet']),
    'a single image': (['a/b/1.jpg'], ['1']),
    'no image': ([], []),
}


@pytest.mark.parametrize(('paths', 'names'), CASES.values(), ids=CASES)
def test_names(paths: list[str], names: list[str]) -> None:
    for root in ('data/images/', '/srv/data/'):
        given = [f'{root}{path}' for path in paths]
        assert picture_names(given) == dict(zip(given, names, strict=True))
        assert picture_names([*reversed(given), *given]) == picture_names(given), 'the order does not matter'


@pytest.mark.parametrize('names', [['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg'], ['sheet.jpg', 'sheet-0.jpg']], ids=str)
def test_every_image_has_its_picture(names: list[str], tmp_path: Path) -> None:
    images = [tmp_path / 'images' / 'validation' / name for name in names]
    for i, path in enumerate(images):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 60, 3), 50 * i, np.uint8))

    class Images(list):
        metainfo: ClassVar[dict[str, tuple]] = dict(classes=('a', 'b'))

        def get_data_info(self, index: int) -> dict[str, str]:
            return dict(img_path=str(self[index]))

    runner = SimpleNamespace(rank=0, test_dataloader=SimpleNamespace(dataset=Images(images)))
    hook = PictureHook(str(tmp_path / 'out'))
    hook.before_test_epoch(runner)
    for path in images:
        sample = BaseDataElement(metainfo=dict(img_path=str(path)))
        sample.pred_sem_seg = PixelData(data=torch.zeros(1, 40, 60, dtype=torch.long))
        hook.after_test_iter(runner, 0, outputs=[sample])
    hook.after_test_epoch(runner)
    written = sorted((tmp_path / 'out').rglob('*.png'))
    assert len(written) == len(images) + 1
    contents = {cv2.imread(str(path)).tobytes() for path in written}
    assert len(contents) == len(images) + 1
