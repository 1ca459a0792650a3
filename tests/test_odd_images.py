"""Is an odd image file loaded as Pillow shows it, or refused by its name, and in which frame do its boxes lie?"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from PIL import Image, ImageOps

import dense
from dense.classify.transforms import PhotoTransform
from dense.data.check_samples import check_samples
from dense.data.loading import CheckedDataset
from dense.data.readable import image_size
from dense.errors import UserError

assert dense  # repairs mmcv

HEIGHT, WIDTH = 24, 40


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth colours, so that compression changes little."""
    rows, columns = np.mgrid[:height, :width] / max(height, width, 2)
    return (255 * np.stack([rows, columns, (rows + columns) / 2], axis=-1)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(picture(height, width))


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(rgb(), 'JPEG', quality=98, subsampling=0, exif=exif)


def animated(kind: str) -> bytes:
    frames = [rgb(), Image.fromarray(255 - picture())]
    return saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({} if kind == 'GIF' else dict(lossless=True))
    )


def gray_16() -> bytes:
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    return cv2.imencode('.png', values)[1].tobytes()


def color_16() -> bytes:
    return cv2.imencode('.png', picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def huge_header() -> bytes:
    """A PNG of a few bytes that says it is 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'0' * 100)) + chunk(b'IEND', b'')
    )


def palette(transparent: bool = False) -> bytes:
    image = rgb().quantize(32)
    return saved(image, 'PNG', **(dict(transparency=3) if transparent else {}))


JPEG, PNG = saved(rgb(), 'JPEG', quality=98, subsampling=0), saved(rgb(), 'PNG')
# Name of the file -> its content, and how far a channel may be from what Pillow shows.
GOOD: dict[str, tuple[Callable[[], bytes], int]] = {
    'plain.jpg': (lambda: JPEG, 3),
    'plain.png': (lambda: PNG, 0),
    'gray.png': (lambda: saved(rgb().convert('L'), 'PNG'), 0),
    'gray.jpg': (lambda: saved(rgb().convert('L'), 'JPEG', quality=98), 3),
    'two values.png': (lambda: saved(rgb().convert('1'), 'PNG'), 0),
    'rgba.png': (lambda: saved(rgb().convert('RGBA'), 'PNG'), 0),
    'gray and alpha.png': (lambda: saved(rgb().convert('LA'), 'PNG'), 0),
    'palette.png': (palette, 0),
    'palette with a transparent colour.png': (lambda: palette(True), 0),
    'cmyk.jpg': (lambda: saved(rgb().convert('CMYK'), 'JPEG', quality=98, subsampling=0), 4),
    '16 bit gray.png': (gray_16, 1),
    '16 bit colour.png': (color_16, 1),
    'a gif named.jpg': (lambda: animated('GIF'), 0),
    'animated.png': (lambda: animated('PNG'), 0),
    'animated.webp': (lambda: animated('WEBP'), 1),
    'bitmap.bmp': (lambda: saved(rgb(), 'BMP'), 0),
    'tiff.tif': (lambda: saved(rgb(), 'TIFF'), 0),
    'one pixel.png': (lambda: saved(rgb(1, 1), 'PNG'), 0),
    'wide.png': (lambda: saved(rgb(300, 20_000), 'PNG'), 0),
    'progressive.jpg': (lambda: saved(rgb(), 'JPEG', quality=98, subsampling=0, progressive=True), 3),
    **{f'turned {i}.jpg': (lambda i=i: with_orientation(i), 3) for i in range(1, 9)},
}  # fmt: skip
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    'empty.jpg': (lambda: b'', 'the file is empty'),
    'text.jpg': (lambda: b'no image', 'it is not an image, or it is damaged'),
    'half.jpg': (lambda: JPEG[: len(JPEG) // 2], 'damaged'),
    'a header.jpg': (lambda: JPEG[:30], 'damaged'),
    'half.png': (lambda: PNG[: len(PNG) // 2], 'damaged'),
    'half.gif': (lambda: animated('GIF')[:60], 'damaged'),
    'flipped.png': (lambda: PNG[:60] + bytes(255 - b for b in PNG[60:80]) + PNG[80:], 'damaged'),
    'huge.png': (huge_header, 'damaged'),
    'narrow.png': (lambda: saved(rgb(2, 20_000), 'PNG'), 'its sides, 20000 x 2 pixels, are too unequal'),
}


class OneImage:
    """A data set of one image, read as the configs of detectors and segmentors read it, and made small."""

    metainfo: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, path: Path, *then: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.path = path
        self.pipeline = Compose([LoadImageFromFile(), *then])

    def __len__(self) -> int:
        return 1

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(img_path=str(self.path))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pipeline(self.get_data_info(index))


def resized(results: dict[str, Any]) -> dict[str, Any]:
    """Resize as MMCV does to a longest side of 320."""
    return dict(results, img=mmcv.imrescale(results['img'], (320, 320)))


def as_pillow_shows(path: Path) -> np.ndarray:
    """RGB, turned as EXIF says; of 16 bits the higher 8, which Pillow itself would cut off."""
    with Image.open(path) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith('I'):
            values = np.asarray(turned).astype(np.uint32) // 257
            return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)
        return np.asarray(turned.convert('RGB'))


@pytest.mark.parametrize('name', GOOD)
def test_what_can_be_read_is_what_pillow_shows(name: str, tmp_path: Path) -> None:
    make, tolerance = GOOD[name]
    path = tmp_path / name
    path.write_bytes(make())
    loaded = CheckedDataset(OneImage(path), test_mode=True)[0]['img'][..., ::-1]
    expected = as_pillow_shows(path)
    assert loaded.shape == expected.shape and loaded.dtype == np.uint8
    assert np.abs(loaded.astype(int) - expected).max() <= tolerance
    assert image_size(str(path)) is not None and image_size(str(path))[:2] == expected.shape[:2]  # type: ignore[index]


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(UserError, match=f'cannot read .*{name}: .*{reason}') as caught:
        CheckedDataset(OneImage(path, resized), test_mode=True)[0]
    assert len(str(caught.value).splitlines()) == 2
    training = CheckedDataset(OneImage(path, resized))
    with pytest.raises(UserError, match='20 samples in a row'):
        training[0]
    assert set(training.take_reports()) == {str(path)}


TURN = Image.Transpose
STORED_AS = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize('orientation', range(1, 9))
def test_boxes_lie_in_the_displayed_frame(orientation: int, tmp_path: Path) -> None:
    """A bright square is found at its box after loading, in Pillow's displayed image and in OpenCV's."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[8:16, 24:40] = 255
    turn = STORED_AS.get(orientation)
    stored = Image.fromarray(upright) if turn is None else Image.fromarray(upright).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'photo.jpg'
    path.write_bytes(saved(stored, 'JPEG', quality=100, subsampling=0, exif=exif))
    loaded = LoadImageFromFile()(dict(img_path=str(path)))['img']
    for shown in (loaded, as_pillow_shows(path), cv2.imread(str(path))):
        rows, columns = np.nonzero(shown[..., 0] > 128)
        assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (8, 16, 24, 40)


class Described(OneImage):
    """The same with a size from an annotation."""

    size = (HEIGHT, WIDTH)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(img_path=str(self.path), height=self.size[0], width=self.size[1])


def test_sizes_of_the_unturned_pixels_are_an_error_that_explains(tmp_path: Path) -> None:
    path = tmp_path / 'photo.jpg'
    path.write_bytes(with_orientation(6))
    dataset = Described(path)
    with pytest.raises(UserError, match=r'photo\.jpg, 24 x 40 instead of 40 x 24') as caught:
        check_samples(dataset)
    assert 'EXIF orientation' in caught.value.remedy
    dataset.size = (WIDTH, HEIGHT)
    check_samples(dataset)


@pytest.mark.parametrize(
    'name', ['16 bit gray.png', 'palette.png', 'rgba.png', 'a gif named.jpg', 'cmyk.jpg', 'turned 6.jpg']
)
def test_a_classifier_reads_odd_images_too(name: str, tmp_path: Path) -> None:
    """As timm: the pixels as they are stored, without EXIF's turn, which its published weights were trained with."""
    seen: list[np.ndarray] = []

    def keep(image: Image.Image) -> torch.Tensor:
        seen.append(np.asarray(image))
        return torch.zeros(3, 1, 1)

    path = tmp_path / name
    path.write_bytes(GOOD[name][0]())
    PhotoTransform(keep)(dict(img_path=str(path), gt_label=0))
    expected = as_pillow_shows(path)
    if name.startswith('turned'):
        expected = np.asarray(Image.open(path))
    assert np.abs(seen[0].astype(int) - expected).max() <= 1
