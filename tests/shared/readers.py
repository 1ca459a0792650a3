"""What reads files and texts that people bring along, each as one function of bytes, with whole examples to start from.

A reader returns, or raises one of its own errors; anything else is a defect.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from checkpoints import checkpoint
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image

from backbones.serialization import CheckpointError, load_file
from dense.data.annotations import check_annotations
from dense.data.check import coco_categories
from dense.data.classes import read_coco_classes, read_folder_classes
from dense.data.coco_file import read_json
from dense.data.coco_folder import CocoFolderDataset
from dense.data.loading import CheckedDataset
from dense.data.readable import image_size
from dense.data.rle import decode_lengths
from dense.engine.options import apply_options, check_options, parse_options
from dense.errors import UserError

SIDE = 16


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        read: Takes the content, and a folder for files.
        errors: What it may raise.
        seeds: Whole contents.
    """

    read: Callable[[bytes, Path], Any]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]

    def accepts(self, content: bytes, folder: Path) -> bool:
        """Tell whether the content is read; raises what is no error of the reader's own."""
        try:
            self.read(content, folder)
        except self.errors as error:
            lines = str(error).splitlines()
            assert len(lines) == 2 or not isinstance(error, UserError | CheckpointError), lines
            return False
        return True


def annotation() -> dict[str, Any]:
    """A small annotation file with polygons, run lengths of both kinds, and a crowd."""
    polygon = [1, 1, 9, 1, 9, 9, 1, 9.5]
    shapes = [
        [polygon],
        dict(size=[SIDE, SIDE], counts=[100, 56, 100]),
        dict(size=[SIDE, SIDE], counts='T3h1T3'),
    ]
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', height=SIDE, width=SIDE) for i in (1, 2)],
        annotations=[
            dict(
                id=i,
                image_id=1 + i % 2,
                category_id=1,
                bbox=[1, 1, 8, 8.5],
                area=68,
                iscrowd=int(i > 1),
                segmentation=s,
            )
            for i, s in enumerate(shapes, 1)
        ],
        categories=[dict(id=1, name='bolt'), dict(id=2, name='nut')],
    )


def _read_annotation(content: bytes, folder: Path) -> None:
    path = _written(content, folder, 'instances.json')
    for read in (read_coco_classes, coco_categories):
        with contextlib.suppress(UserError):
            read(path)
    checked, _ = check_annotations(read_json(path), path)
    read_coco_classes(path)
    load_all(path, checked)


def load_all(path: Path, checked: dict[str, Any]) -> None:
    """Load what was accepted as training does: every object with its mask."""
    from mmdet.datasets.transforms import LoadAnnotations  # needs mmcv repaired

    pipeline = [LoadAnnotations(with_bbox=True, with_mask=True)]
    dataset = CocoFolderDataset(str(path.parent), path.name, dict(img=''), [])
    for index, row in enumerate(dataset.get_data_info(i) for i in range(len(dataset))):
        if row['height'] * row['width'] <= 1 << 16:
            sample = Compose(pipeline)(dict(dataset.get_data_info(index), ori_shape=(row['height'], row['width'])))
            assert bool(sample['gt_bboxes'].tensor.isfinite().all())
            assert sample['gt_masks'].masks.shape[0] == len(sample['gt_bboxes'])


def _read_runs(content: bytes, folder: Path) -> None:
    lengths = decode_lengths(content)
    assert lengths.dtype == np.int64 and (lengths >= 0).all()


class _One:
    """A data set of one file."""

    metainfo: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, info: dict[str, Any], *pipeline: Any) -> None:
        self.info, self.pipeline = info, Compose(list(pipeline))

    def __len__(self) -> int:
        return 1

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(self.info)

    def __getitem__(self, index: int) -> Any:
        return self.pipeline(self.get_data_info(index))


def _read_image(content: bytes, folder: Path) -> None:
    path = str(_written(content, folder, 'photo.png'))
    size = image_size(path)
    image = CheckedDataset(_One(dict(img_path=path), LoadImageFromFile()), test_mode=True)[0]['img']
    assert image.dtype == np.uint8 and image.ndim == 3 and (size is None or min(size[:2]) > 0)


def _read_labels(content: bytes, folder: Path) -> None:
    from mmseg.datasets.transforms import LoadAnnotations as LoadLabels  # needs mmcv repaired

    path = str(_written(content, folder, 'labels.png'))
    info = dict(seg_map_path=path, reduce_zero_label=True, seg_fields=[])
    CheckedDataset(_One(info, LoadLabels()), num_classes=3, test_mode=True)[0]


def _read_classes(content: bytes, folder: Path) -> None:
    _written(content, folder, 'classes.json')
    assert read_folder_classes(folder).names


def _read_checkpoint(content: bytes, folder: Path) -> None:
    load_file(_written(content, folder, 'model.pth'))


def _read_option(content: bytes, folder: Path) -> None:
    cfg = Config(dict(model=dict(type='Net', layers=[dict(a=1), 2], text='x'), lr=0.1))
    options = parse_options(content.decode('utf-8', 'replace').split('\n')[:3])
    check_options(cfg, options)
    apply_options(cfg, options)


def _written(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _images() -> list[bytes]:
    values = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)
    found = []
    for kind, mode in (('PNG', 'RGB'), ('PNG', 'P'), ('JPEG', 'RGB'), ('JPEG', 'CMYK'), ('GIF', 'P'), ('BMP', 'RGB')):
        file = io.BytesIO()
        Image.fromarray(values).convert(mode).save(file, kind)
        found.append(file.getvalue())
    return found


def _labels() -> list[bytes]:
    file = io.BytesIO()
    Image.fromarray((np.arange(SIDE * SIDE, dtype=np.uint8) % 4).reshape(SIDE, SIDE)).save(file, 'PNG')
    return [file.getvalue()]


def _checkpoints() -> list[bytes]:
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(checkpoint(), file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.safetensors'
        safetensors.torch.save_file({'a': torch.zeros(2, 3)}, path)
        return [*found, path.read_bytes()]


def _classes() -> list[bytes]:
    forms = [['cat', 'dog'], [dict(index=1, name='cat', color=[1, 2, 3]), dict(index=2, name='dog')]]
    return [json.dumps(form).encode() for form in forms]


READERS = {
    'annotations': Reader(_read_annotation, (UserError,), lambda: [json.dumps(annotation()).encode()]),
    'run lengths': Reader(_read_runs, (ValueError,), lambda: [b'T3h1T3', b'000', b'o1f2']),
    'classes': Reader(_read_classes, (UserError,), _classes),
    'images': Reader(_read_image, (UserError,), _images),
    'label maps': Reader(_read_labels, (UserError,), _labels),
    'checkpoints': Reader(_read_checkpoint, (CheckpointError,), _checkpoints),
    'options': Reader(_read_option, (UserError,), lambda: [b'lr=1e-3', b"model={'a': 1}", b'model.layers.0.a=[1, 2]']),
}
