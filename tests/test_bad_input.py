"""Does every user mistake give one line of cause, one line of remedy and exit status 2, without a traceback?"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent
Case = tuple[str, Callable[[Path], list[str]], str, str]


def tool(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(f'tools_{name}', PROJECT / 'tools' / f'{name}.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def options(*pairs: str) -> Callable[[Path], list[str]]:
    return lambda root: list(pairs)


def remove(*names: str) -> Callable[[Path], list[str]]:
    def damage(root: Path) -> list[str]:
        for name in names:
            (root / name).unlink()
        return []

    return damage


def spoil(pattern: str, *pairs: str) -> Callable[[Path], list[str]]:
    """Put something else in the place of images."""

    def damage(root: Path) -> list[str]:
        for path in root.glob(pattern):
            path.write_bytes(b'no image')
        return list(pairs)

    return damage


def wrong_label(*pairs: str) -> Callable[[Path], list[str]]:
    def damage(root: Path) -> list[str]:
        for path in (root / 'annotations' / 'training').glob('*.png'):
            cv2.imwrite(str(path), np.full_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 9))
        return list(pairs)

    return damage


def third_class(root: Path) -> list[str]:
    path = root / 'instances_validation.json'
    content = json.loads(path.read_text())
    content['categories'].append(dict(id=3, name='green'))
    path.write_text(json.dumps(content))
    return []


def empty_annotation(root: Path) -> list[str]:
    (root / 'instances_training.json').write_bytes(b'')
    return []


def nan_box(root: Path) -> list[str]:
    path = root / 'instances_training.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][2] = float('nan')
    path.write_text(json.dumps(content))
    return []


def truncate(name: str, *pairs: str) -> Callable[[Path], list[str]]:
    def damage(root: Path) -> list[str]:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
        return list(pairs)

    return damage


def weights_only(root: Path) -> list[str]:
    torch.save({'state_dict': {}, 'meta': {}}, root / 'weights.pth')
    return ['--resume', str(root / 'weights.pth')]


def not_a_folder(root: Path) -> list[str]:
    (root / 'file').touch()
    return ['--work-dir', str(root / 'file' / 'work')]


def elsewhere(root: Path) -> list[str]:
    return ['--data-root', str(root / 'elsewhere')]


def no_file(option: str) -> Callable[[Path], list[str]]:
    return lambda root: [option, str(root / 'nothing.pth')]


COCO80 = 'type=CocoDataset'
# task, what is wrong (changes the data, returns more options or further arguments), cause, remedy
TRAIN: dict[str, tuple[str, Callable[[Path], list[str]], str, str]] = {
    'unknown key': ('seg', options('model.backbon.arch=tiny'), r"model has no 'backbon'", r"did you mean 'backbone'"),
    'unknown key at the top': ('seg', options('lod_from=x'), r"has no 'lod_from'", r"did you mean 'load_from'"),
    'unknown argument': ('seg', options('model.backbone.drop_path=0'), r"'drop_path' of Incep", r"'drop_path_rate'"),
    'key below a value': (
        'seg',
        options('train_cfg.max_iters.x=1'),
        r'train_cfg.max_iters is 400',
        'set train_cfg.max_',
    ),
    'index of a list': ('det', options('param_scheduler.9.end=1'), r"'9' is not an index of a list of 2", 'use 0 to 1'),
    'option without =': ('seg', options('train_cfg.max_iters'), r'cannot read the config option', 'key=value'),
    'unknown arch': ('seg', options('model.backbone.arch=tinny'), r'tinny.*atto', r'\w'),
    'unknown type': ('seg', options('model.type=EncodrDecoder'), r"type 'EncodrDecoder'", r"'EncoderDecoder'"),
    'unknown class of data': ('seg', options('train_dataloader.dataset.type=Folder'), r"type 'Folder'", r'\w'),
    'no data root': ('seg', elsewhere, r'data root not found: .*elsewhere', r'--data-root'),
    'no annotation file': ('det', remove('instances_training.json'), r'not found: .*instances_training', r'ann_file'),
    'empty annotation file': ('det', empty_annotation, r'instances_training.json.*', r'\w'),
    'no folder of images': (
        'det',
        options('train_dataloader.dataset.data_prefix.img=pictures/'),
        r'data folder not found: .*pictures',
        r'train_dataloader.dataset.data_prefix.img',
    ),
    'no classes.json': ('seg', remove('classes.json'), r'classes.json', r'write the class names'),
    'missing images': (
        'det',
        remove('images/training/2.jpg', 'images/training/3.jpg'),
        r'2 of 6 images .* missing: .*2.jpg, .*3.jpg',
        r'restore the files',
    ),
    'missing label map': (
        'seg',
        remove('annotations/training/4.png'),
        r'1 of 6 label maps .* missing: .*4.png',
        r'restore the files',
    ),
    'annotation with other classes': (
        'det',
        options(f'train_dataloader.dataset.{COCO80}', f'val_dataloader.dataset.{COCO80}'),
        r'instances_training.json names 2 classes \(red, blue\); the config expects 80',
        r'own-',
    ),
    'splits with other classes': (
        'det',
        third_class,
        r'the val data has the classes red, blue, green',
        r'same classes',
    ),
    'head with another number': (
        'det',
        options(
            f'train_dataloader.dataset.{COCO80}',
            'train_dataloader.dataset.metainfo={"classes": ["red", "blue"]}',
            f'val_dataloader.dataset.{COCO80}',
            'val_dataloader.dataset.metainfo={"classes": ["red", "blue"]}',
            'model.roi_head.bbox_head.num_classes=3',
        ),
        r'bbox_head.num_classes is 3, but the train data has 2 classes \(red, blue\)',
        r'set model.roi_head.bbox_head.num_classes=2',
    ),
    'another number than the own data has': (
        'det',
        options('model.roi_head.bbox_head.num_classes=3'),
        r'bbox_head.num_classes is 3, but the train data has 2 classes \(red, blue\)',
        r'set model.roi_head.bbox_head.num_classes=2',
    ),
    'another number for label maps': (
        'seg',
        options('model.auxiliary_head.num_classes=150'),
        r'auxiliary_head.num_classes is 150, but the train data has 3 classes',
        r'set model.auxiliary_head.num_classes=3',
    ),
    'class names as text': (
        'det',
        options(f'train_dataloader.dataset.{COCO80}', 'train_dataloader.dataset.metainfo={"classes": "red"}'),
        r"metainfo.classes is the text 'red'",
        r"classes=\['red'\]",
    ),
    'label outside the range': (
        'seg',
        wrong_label(),
        r'annotations/training/\d.png holds the value 9; the model has 3 classes, so 1 to 3',
        r'correct the label map',
    ),
    'label outside, in a process': (
        'seg',
        wrong_label('train_dataloader.num_workers=1'),
        r'annotations/training/\d.png holds the value 9',
        r'correct the label map',
    ),
    'too many unreadable images': (
        'seg',
        spoil('images/training/*.jpg', 'train_dataloader.num_workers=1'),
        r'20 samples in a row cannot be read, the last of them .*\.jpg',
        r'check the disk',
    ),
    'more unreadable images than allowed': (
        'seg',
        spoil('images/training/[1-3].jpg', 'max_unreadable=0', 'train_cfg.max_iters=20'),
        r'files of the data set cannot be read \(at most 0 are skipped\), for example .*/[1-3].jpg',
        r'max_unreadable',
    ),
    'unreadable image in validation': (
        'seg',
        spoil('images/validation/5.jpg', 'train_cfg.max_iters=1'),
        r'cannot read .*validation/5.jpg: it is not an image, or it is damaged',
        r'restore the file',
    ),
    'nothing to resume': (
        'seg',
        options('--resume'),
        r'nothing to resume: there is no checkpoint in .*work',
        r'--resume',
    ),
    'no file to resume': ('seg', no_file('--resume'), r'nothing to resume: there is no file .*nothing.pth', r'path'),
    'only weights to resume': ('seg', weights_only, r'weights.pth holds weights only', r'--load-from'),
    'no file to load from': ('seg', no_file('--load-from'), r'nothing.pth', r'\w'),
    'work dir not writable': ('seg', not_a_folder, r'cannot write into the work dir .*file/work', r'--work-dir'),
    'loss not finite': (
        'seg',
        options('optim_wrapper.optimizer.lr=1e30', 'param_scheduler=[]', 'optim_wrapper.clip_grad=None'),
        r'the loss of step \d is not finite: .*loss nan.* output that is not finite is .* backbone\..*images \d.jpg',
        r'the state before it is in .*emergency_iter_\d.pth .*lower the learning rate',
    ),
    'loss of a detector not finite': (
        'det',
        options('optim_wrapper.optimizer.lr=1e30', 'param_scheduler=[]', 'optim_wrapper.clip_grad=None'),
        r'the loss of step \d is not finite: .*loss_rpn.* that of \w+\..*images \d.jpg, \d.jpg',
        r'emergency_iter_\d.pth .*lower the learning rate',
    ),
    'unknown choice for bad values': ('seg', options('on_nonfinite=never'), r"on_nonfinite is 'never'", r"'skip:N'"),
    'NaN in a box': (
        'det',
        nan_box,
        r'instances_training.json: 1 boxes hold NaN or infinity \(annotation 1 of 1.jpg\)',
        r'export the annotation again',
    ),
    'truncated image in validation': (
        'det',
        truncate('images/validation/5.jpg', 'train_cfg.max_iters=1'),
        r'cannot read .*validation/5.jpg: it is not an image, or it is damaged',
        r'restore the file',
    ),
}


def check_answer(status: int, error: str, cause: str, remedy: str) -> None:
    lines = error.strip().split('\n')
    assert status == 2, error
    assert len(lines) == 2, error
    assert re.match(f'error: .*{cause}', lines[0]), lines[0]
    assert re.match(f'remedy: .*{remedy}', lines[1]), lines[1]


@pytest.mark.parametrize('name', TRAIN)
def test_training_mistake(
    name: str,
    own_data: Path,
    tmp_path: Path,
    tiny_command: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    task, spoil_it, cause, remedy = TRAIN[name]
    command = tiny_command(task, own_data, tmp_path / 'work', *spoil_it(own_data))
    status = tool('train')(command)
    check_answer(status, capfd.readouterr().err, cause, remedy)


CONFIG_WITH_ARCH = 'configs/mini/upernet_inceptionnext-a_450i_mini-128x128.py'
CONFIG_TEXTS = {
    'misspelt key': ('optim_wraper = dict()\n', r"unknown config key 'optim_wraper'", r"did you mean 'optim_wrapper'"),
    'no Python': ('model = dict(\n', r'cannot read the config .*own.py: SyntaxError', r'correct the file'),
    'no base': ("_base_ = ['nothing.py']\n", r'nothing.py', r'\w'),
    'a dict over text': (
        f'_base_ = {str(PROJECT / CONFIG_WITH_ARCH)!r}\nmodel = dict(backbone=dict(arch=dict(dims=(8, 16))))\n',
        r'cannot read the config .*own.py: TypeError',
        r'add _delete_=True to the dict',
    ),
    'several roots': (
        'train_dataloader = dict(dataset=dict(data_root="a"))\nval_dataloader = dict(dataset=dict(data_root="b"))\n',
        r'--data-root replaces one data root, but the config has 2: a, b',
        r'train_dataloader.dataset.data_root',
    ),
}


@pytest.mark.parametrize('name', CONFIG_TEXTS)
def test_mistake_in_a_config_file(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, cause, remedy = CONFIG_TEXTS[name]
    (tmp_path / 'own.py').write_text(text)
    status = tool('train')([str(tmp_path / 'own.py'), '--work-dir', str(tmp_path), '--data-root', str(tmp_path)])
    check_answer(status, capfd.readouterr().err, cause, remedy)


def checkpoint_of_another_model(root: Path) -> None:
    torch.save({'state_dict': {'fc.weight': torch.zeros(2, 2)}}, root / 'model.pth')


def half_a_checkpoint(root: Path) -> None:
    checkpoint_of_another_model(root)
    (root / 'model.pth').write_bytes((root / 'model.pth').read_bytes()[:200])


TEST = {
    'no checkpoint': ('seg', lambda root: None, [], r'checkpoint not found: .*model.pth', r'give the file'),
    'truncated checkpoint': ('seg', half_a_checkpoint, [], r'model.pth', r'download or copy it again'),
    'another model': ('seg', checkpoint_of_another_model, [], r'does not fit the model: 0 of \d+ tensors', r'config'),
    'no augmentation': ('det', checkpoint_of_another_model, ['--tta'], r'no test-time augmentation', r'without --tta'),
}


@pytest.mark.parametrize('name', TEST)
def test_testing_mistake(
    name: str,
    own_data: Path,
    tmp_path: Path,
    tiny_command: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    task, prepare, more, cause, remedy = TEST[name]
    prepare(own_data)
    config, *rest = tiny_command(task, own_data, tmp_path / 'work', *more)
    status = tool('test')([config, str(own_data / 'model.pth'), *rest])
    check_answer(status, capfd.readouterr().err, cause, remedy)


def test_unknown_config_file_through_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / 'tools' / 'train.py'), 'configs/upernet/upernet_inceptionnext-t.py']
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    check_answer(done.returncode, done.stderr, 'config file not found', r"did you mean 'configs/upernet/upernet_")


def test_unexpected_error_keeps_its_traceback_in_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from dense.console.main import run

    def fail() -> None:
        raise LookupError('what nobody\nthought of')

    status = run(fail, log_dir=tmp_path)
    error = capfd.readouterr().err
    check_answer(status, error, 'unexpected LookupError: what nobody thought of', r'the traceback is in .*error-.*txt')
    (saved,) = tmp_path.glob('error-*.txt')
    assert str(saved) in error and 'raise LookupError' in saved.read_text()
    with pytest.raises(LookupError):
        run(fail, show_traceback=True)
