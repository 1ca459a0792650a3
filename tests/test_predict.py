"""What does `dense infer` write, what does it do with odd pictures, and what can a hostile model file do?"""

import importlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_files import ABOUT, BOXES, detector, external_tensor, segmentor
from PIL import Image
from pycocotools import mask as coco_mask

from dense.data.loading import CheckedDataset
from dense.data.mini import write_mini
from dense.data.rle import encode
from dense.engine.launch import load_config
from dense.errors import UserError
from dense.export.from_config import describe
from dense.predict.description import read_description
from dense.predict.exported import ExportedModel
from dense.project import config_names

PROJECT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)


@pytest.fixture
def infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Function (model, *pictures, *options) -> exit status, lines of the output, lines of the errors."""
    monkeypatch.syspath_prepend(str(PROJECT))
    main = importlib.import_module('tools.infer').main
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
        status = main([*map(str, arguments), '--out', 'out'])
        shown = capfd.readouterr()
        return status, shown.out.splitlines(), shown.err.splitlines()

    return run


def three_fields(folder: Path) -> Path:
    """A picture whose left third is red, whose middle is green and whose right is blue; (20, 30, 3)."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    for channel in range(3):
        pixels[:, 10 * channel : 10 * channel + 10, channel] = 200
    Image.fromarray(pixels).save(folder / 'fields.png')
    return folder / 'fields.png'


def refused(result: tuple[int, list[str], list[str]], match: str = '') -> None:
    status, _, errors = result
    assert status == 2 and len(errors) == 2, errors
    assert errors[0].startswith('error: ') and errors[1].startswith('remedy: ')
    assert 'Traceback' not in ''.join(errors) and 'unexpected' not in errors[0], errors
    assert re.search(match, errors[0]), errors


# What is written


@pytest.mark.parametrize('numbers', [[1, 2, 3], [0, 1, 2], [4, 300, 7], []])
def test_label_maps_hold_the_numbers_that_training_reads(numbers: list[int], tmp_path: Path, infer: Any) -> None:
    model = segmentor(tmp_path / 'm.onnx', about=dict(ABOUT, numbers=numbers))
    assert infer(model, three_fields(tmp_path)) == (0, [f'{tmp_path}/fields.png: red, green, blue'], [])
    written = np.array(Image.open('out/fields.png'))
    assert written.shape == (20, 30)
    for index, number in enumerate(numbers or [0, 1, 2]):
        assert (written[:, 10 * index : 10 * index + 10] == number).all()


def test_a_prediction_of_every_truth_is_the_file_that_training_reads(tmp_path: Path, infer: Any) -> None:
    # A model that is always right: the picture is its own truth, painted in the colours of the channels.
    data = write_mini(tmp_path / 'mini', num_train=1, num_val=1)
    truth = np.array(Image.open(next((data.root / 'annotations' / 'training').glob('*.png'))))
    picture = np.zeros((*truth.shape, 3), np.uint8)
    for value in (1, 2, 3):
        picture[truth == value, value - 1] = 200
    Image.fromarray(picture).save(tmp_path / 'truth.png')
    assert infer(segmentor(tmp_path / 'm.onnx'), tmp_path / 'truth.png')[0] == 0
    written = np.array(Image.open('out/truth.png'))
    seen = (truth >= 1) & (truth <= 3)
    assert seen.any() and (written[seen] == truth[seen]).all()


class Categories:
    """A data set of three of COCO's categories."""

    metainfo: ClassVar = dict(classes=('person', 'bottle', 'toothbrush'))
    cat_ids: ClassVar = [1, 44, 90]


@pytest.mark.parametrize(
    ('config', 'meta', 'numbers'),
    [
        ('mask_rcnn', CheckedDataset(Categories()).metainfo, [1, 44, 90]),
        ('mask_rcnn', dict(classes=('a', 'b')), []),
        ('upernet', dict(classes=('a', 'b'), reduce_zero_label=True), [1, 2]),
        ('upernet', dict(classes=('a', 'b'), reduce_zero_label=False), [0, 1]),
        ('upernet', dict(classes=('a', 'b')), [1, 2]),
        ('upernet', {}, list(range(1, 13))),
    ],
)
def test_an_export_knows_the_numbers_of_the_data(config: str, meta: dict[str, Any], numbers: list[int]) -> None:
    (name,) = config_names(f'mini/{config.replace("_", "-")}')
    about = describe(load_config(name), meta)
    assert about['numbers'] == numbers
    text = json.dumps(dict(about, task='labels', outputs=['labels'], smallest=64))
    assert read_description(text).numbers == tuple(numbers)


def test_objects_keep_their_masks_and_numbers(tmp_path: Path, infer: Any) -> None:
    status, shown, _ = infer(detector(tmp_path / 'm.onnx'), three_fields(tmp_path), '--score', '0.5')
    assert (status, shown) == (0, [f'{tmp_path}/fields.png: 2 objects'])
    first, second = json.loads(Path('out/fields.json').read_text())
    assert (first['box'], first['score'], first['label'], first['number']) == ([2, 3, 12, 13], 0.9, 'red', 1)
    assert (second['label'], second['number']) == ('blue', 90)
    expected = np.zeros((20, 30), np.uint8)
    expected[3:8, 2:12] = 1  # the upper half of the box
    assert (coco_mask.decode(first['mask']) == expected).all()


def test_objects_without_masks(tmp_path: Path, infer: Any) -> None:
    assert infer(detector(tmp_path / 'm.onnx', masks=False), three_fields(tmp_path))[0] == 0
    assert all('mask' not in found for found in json.loads(Path('out/fields.json').read_text()))
    assert infer(detector(tmp_path / 'm.onnx', scores=(0.0, 0.0, 0.0)), three_fields(tmp_path))[0] == 0
    assert json.loads(Path('out/fields.json').read_text()) == []


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1), (7, 5), (64, 48), (300, 200)])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths_are_those_of_pycocotools(shape: tuple[int, int], share: float) -> None:
    mask = RNG.random(shape) < share
    if mask.size > 1000 and share == 0.02:
        mask = cv2.dilate(mask.astype(np.uint8), np.ones((31, 17), np.uint8)).astype(bool)  # long runs too
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert encode(mask) == {'size': list(shape), 'counts': theirs['counts'].decode()}


def test_the_drawing_has_the_size_of_the_picture_and_shows_the_objects(tmp_path: Path, infer: Any) -> None:
    for size in ((20, 30), (900, 1400)):
        Image.new('RGB', size[::-1], (128, 128, 128)).save(tmp_path / 'gray.png')
        assert infer(detector(tmp_path / 'm.onnx'), tmp_path / 'gray.png')[0] == 0
        drawn = np.array(Image.open('out/gray_result.jpg')).astype(int)
        assert drawn.shape == (*size, 3)
        if size == (20, 30):
            inside = drawn[5, 8]  # in the red mask
            assert inside[0] > inside[2] + 60


# Pictures


def save(kind: str, path: Path) -> tuple[Path, np.ndarray]:
    """Write the three fields in another kind of file; return it and the pixels expected of it."""
    pixels = np.array(Image.open(three_fields(path)))
    gray = np.full((20, 30), 77, np.uint8)
    file = path / f'{kind}.png'
    if kind == 'gray':
        Image.fromarray(gray).save(file)
        return file, np.stack([gray] * 3, axis=2)
    if kind == 'sixteen bits':
        cv2.imwrite(str(file), pixels[..., ::-1].astype(np.uint16) * 257)
    elif kind == 'transparent':
        Image.fromarray(np.dstack([pixels, gray])).save(file)
    elif kind == 'palette':
        Image.fromarray(pixels).convert('P', palette=Image.Palette.ADAPTIVE, colors=3).save(file)
    else:
        file = path / 'turned.jpg'
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side: to be turned clockwise
        Image.fromarray(np.rot90(pixels)).save(file, quality=100, subsampling=0, exif=exif)
    return file, pixels


@pytest.mark.parametrize('kind', ['gray', 'sixteen bits', 'transparent', 'palette', 'turned'])
def test_pictures_of_every_kind(kind: str, tmp_path: Path, infer: Any) -> None:
    file, expected = save(kind, tmp_path)
    assert infer(segmentor(tmp_path / 'm.onnx'), file)[0] == 0
    written = np.array(Image.open(f'out/{file.stem}.png'))
    assert (written == 1 + expected.argmax(axis=2)).mean() > (0.95 if kind == 'turned' else 0.999)


def unreadable(kind: str, folder: Path) -> Path:
    path = folder / 'bad.png'
    if kind == 'empty':
        path.touch()
    elif kind == 'text':
        path.write_text('no picture')
    elif kind == 'cut off':
        path.write_bytes(three_fields(folder).read_bytes()[:40])
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'huge':  # a header that promises 60000 x 60000 pixels
        content = bytearray(three_fields(folder).read_bytes())
        content[16:24] = (60000).to_bytes(4, 'big') * 2
        path.write_bytes(content)
    return path


@pytest.mark.parametrize('kind', ['missing', 'empty', 'text', 'cut off', 'folder', 'huge'])
def test_one_unreadable_picture_is_named_and_the_rest_is_done(kind: str, tmp_path: Path, infer: Any) -> None:
    bad, good = unreadable(kind, tmp_path), three_fields(tmp_path)
    (tmp_path / 'last.png').write_bytes(good.read_bytes())
    status, shown, errors = infer(segmentor(tmp_path / 'm.onnx'), good, bad, tmp_path / 'last.png')
    errors = [line for line in errors if not line.startswith('libpng')]
    refused((status, shown, errors), '1 of 3 pictures could not be read: .*bad.png')
    assert [line.split(':')[0] for line in shown] == [str(good), f'skipped {bad}', str(tmp_path / 'last.png')]
    assert Path('out/fields.png').is_file() and Path('out/last.png').is_file()


def test_no_result_overwrites_another_or_a_picture(tmp_path: Path, infer: Any) -> None:
    picture, model = three_fields(tmp_path), segmentor(tmp_path / 'm.onnx')
    for folder in ('out', 'other'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'fields.png').write_bytes(picture.read_bytes())
    refused(infer(model, 'out/fields.png'), 'would overwrite a given picture')
    refused(infer(model, picture, 'other/fields.png'), 'would both be written')
    assert Path('out/fields.png').read_bytes() == picture.read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path, infer: Any) -> None:
    (tmp_path / 'out').touch()
    refused(infer(segmentor(tmp_path / 'm.onnx'), three_fields(tmp_path)), 'cannot make the folder out')


# Model files


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path('exploded'),)


def test_a_program_of_torch_is_never_opened(tmp_path: Path, infer: Any) -> None:
    with zipfile.ZipFile(tmp_path / 'm.pt2', 'w') as archive:
        archive.writestr('archive/data/sample_inputs/model.pt', pickle.dumps(Bomb()))
    for name in ('m.pt2', 'm.onnx'):
        (tmp_path / name).write_bytes((tmp_path / 'm.pt2').read_bytes())
        refused(infer(tmp_path / name, three_fields(tmp_path)), 'can run code' if name == 'm.pt2' else 'not an ONNX')
    (tmp_path / 'm.onnx').write_bytes(pickle.dumps(Bomb()))
    refused(infer(tmp_path / 'm.onnx', three_fields(tmp_path)), 'not an ONNX file')
    assert not Path('exploded').exists()


OTHER_DESCRIPTIONS: dict[str, Any] = {
    'no JSON': '{',
    'nested': '[' * 100_000,
    'a list': '[]',
    'none': None,
    'empty': '{}',
    'task': dict(ABOUT, task='dance'),
    'task of another type': dict(ABOUT, task=['labels']),
    'features': dict(ABOUT, task='features'),
    'outputs of another task': dict(ABOUT, outputs=['boxes']),
    'outputs that are not there': dict(ABOUT, task='logits', outputs=['logits']),
    'outputs of another type': dict(ABOUT, outputs='labels'),
    'instances': dict(ABOUT, task='instances', outputs=['boxes', 'scores', 'labels']),
    'classes': dict(ABOUT, classes=7),
    'names': dict(ABOUT, classes=[1, 2, 3]),
    'too few classes': dict(ABOUT, classes=['red'], palette=[], numbers=[]),
    'palette': dict(ABOUT, palette=[[1, 2], [3], []]),
    'colors': dict(ABOUT, palette=[[1, 2, 999]] * 3),
    'numbers': dict(ABOUT, numbers=[1, 2, 1 << 40]),
    'float numbers': dict(ABOUT, numbers=[1.5, 2, 3]),
    'smallest': dict(ABOUT, smallest='8'),
    'negative': dict(ABOUT, smallest=-1),
    'endless': dict(ABOUT, smallest=1 << 70),
    'resize': dict(ABOUT, resize=[8, 8]),
    'scale': dict(ABOUT, resize=dict(scale=[8], keep_ratio=True)),
    'huge scale': dict(ABOUT, resize=dict(scale=[1 << 14, 1 << 14], keep_ratio=False)),
    'zero scale': dict(ABOUT, resize=dict(scale=[0, 8], keep_ratio=False)),
    'no ratio': dict(ABOUT, resize=dict(scale=[8, 8])),
    **{f'without {key}': {name: v for name, v in ABOUT.items() if name != key} for key in ('task', 'outputs')},
    **{f'without {key}': {name: v for name, v in ABOUT.items() if name != key} for key in ('resize', 'smallest')},
}  # fmt: skip


@pytest.mark.parametrize('name', OTHER_DESCRIPTIONS)
def test_descriptions_are_checked(name: str, tmp_path: Path, infer: Any) -> None:
    refused(infer(segmentor(tmp_path / 'm.onnx', about=OTHER_DESCRIPTIONS[name]), three_fields(tmp_path)))


def test_names_cannot_steer_the_terminal(tmp_path: Path, infer: Any) -> None:
    names = ['red\x1b[2J', 'green\nerror: none', 'b' * 10_000]
    status, shown, _ = infer(segmentor(tmp_path / 'm.onnx', about=dict(ABOUT, classes=names)), three_fields(tmp_path))
    assert status == 0 and len(shown) == 1 and '\x1b' not in shown[0] and len(shown[0]) < 400


def outside(folder: Path) -> list[str]:
    secret = folder / 'secret'
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / 'models' / 'link').symlink_to(secret)
    return ['../secret', str(secret), 'link', '../../../../../etc/passwd', 'sub/../../secret', '..\\secret', '.', '']


def attribute(tensor: TensorProto) -> Any:
    return helper.make_node('Constant', [], ['unused'], value=tensor)


def test_weights_come_from_the_files_own_folder(tmp_path: Path, infer: Any) -> None:
    (tmp_path / 'models').mkdir()
    model, picture = tmp_path / 'models' / 'm.onnx', three_fields(tmp_path)
    for location in outside(tmp_path):
        for extra in (external_tensor(location), attribute(external_tensor(location))):
            segmentor(model, extra=(extra,))
            refused(infer(model, picture), 'not a plain file next to it')
    (tmp_path / 'models' / 'm.onnx.data').write_bytes(np.arange(4, dtype=np.float32).tobytes())
    segmentor(model, extra=(external_tensor('m.onnx.data'),))
    assert infer(model, picture)[0] == 0


def test_operators_of_unknown_libraries(tmp_path: Path, infer: Any) -> None:
    node = helper.make_node('Evil', ['image'], ['unused'], domain='evil', library='./evil.so')
    refused(infer(segmentor(tmp_path / 'm.onnx', extra=(node,)), three_fields(tmp_path)), 'cannot open')


def test_huge_shapes(tmp_path: Path, infer: Any) -> None:
    picture = three_fields(tmp_path)
    promised = TensorProto(name='huge', data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 20])
    node = helper.make_node('Identity', ['huge'], ['all'])
    refused(infer(segmentor(tmp_path / 'm.onnx', extra=(promised, node)), picture), 'cannot open')
    shape = helper.make_tensor('shape', TensorProto.INT64, [1], [1 << 50])
    node = helper.make_node('ConstantOfShape', ['shape'], ['all'])
    refused(infer(segmentor(tmp_path / 'm.onnx', extra=(shape, node)), picture))


@pytest.mark.parametrize('seed', range(4))
def test_damaged_files(seed: int, tmp_path: Path, infer: Any) -> None:
    rng, picture = np.random.default_rng(seed), three_fields(tmp_path)
    sound = detector(tmp_path / 'm.onnx').read_bytes()
    for trial in range(60):
        content = bytearray(sound)
        if trial % 3 == 0:
            content = content[: rng.integers(len(content))]
        elif trial % 3 == 1:
            content = bytearray(rng.integers(0, 256, rng.integers(1, 400), dtype=np.uint8).tobytes())
        else:
            # Not in the masks, most of the file, where everything is a number.
            for at in rng.integers(0, 900, rng.integers(1, 6)):
                content[-int(at) - 1 if at % 2 else int(at)] = rng.integers(256)
        (tmp_path / 'm.onnx').write_bytes(content)
        result = infer(tmp_path / 'm.onnx', picture)
        if result[0] != 0:  # a changed number or name may well be fine
            refused(result)


@pytest.mark.parametrize('name', ['missing.onnx', 'model.txt', 'folder.onnx', 'empty.onnx'])
def test_files_that_are_no_model(name: str, tmp_path: Path, infer: Any) -> None:
    (tmp_path / 'model.txt').write_text('text')
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'empty.onnx').touch()
    refused(infer(name, three_fields(tmp_path)))


def test_boxes_are_those_of_the_picture(tmp_path: Path) -> None:
    found = ExportedModel(detector(tmp_path / 'm.onnx'))(np.zeros((20, 30, 3), np.uint8))
    np.testing.assert_allclose(found['boxes'], BOXES)
    with pytest.raises(UserError, match='too many'):
        ExportedModel(segmentor(tmp_path / 's.onnx'))(np.broadcast_to(np.uint8(0), (1 << 14, 1 << 13, 3)))
