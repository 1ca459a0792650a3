"""Does the demo keep its promises: a folder of its own, pretrained weights that arrive, an honest exit status?"""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backbones import InceptionNeXt
from backbones.weights import load_pretrained
from dense.demo import run as demo
from dense.demo.pretrain import pretrain, read_folders
from dense.demo.run import PARTS, Part, Score, demo_config
from dense.errors import UserError
from dense.project import PROJECT

TINY = dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))


def tiny_backbone() -> InceptionNeXt:
    torch.manual_seed(0)
    return InceptionNeXt(TINY, out_indices=(3,), layer_scale_init_value=1.0)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Noisy red and blue pictures in one folder each."""
    rng = np.random.default_rng(0)
    for name, color in (('blue', (200, 60, 40)), ('red', (40, 60, 200))):  # OpenCV writes blue first
        (tmp_path / 'colors' / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(rng.normal(color, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / 'colors' / name / f'{i}.jpg'), noisy)
    return tmp_path / 'colors'


def test_pictures_are_read_as_normalised_rgb_in_the_order_of_class_names(folders: Path) -> None:
    images, labels = read_folders(folders)
    assert images.shape == (40, 3, 32, 32) and labels.tolist() == [0] * 20 + [1] * 20
    red, _, blue = images[labels == 1].mean(dim=(0, 2, 3)).tolist()
    assert red == pytest.approx((200 - 123.675) / 58.395, abs=0.1) and blue < -0.5


def test_pretraining_learns_and_its_file_is_what_it_trained(folders: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    backbone = tiny_backbone()
    result = pretrain(
        backbone,
        folders,
        tmp_path / 'new' / 'weights.pth',
        steps=25,
        batch_size=8,
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    assert result.accuracy == 1.0
    assert [step for step, _ in seen] == list(range(1, 26)) and seen[-1][1] < seen[0][1]
    fresh = InceptionNeXt(TINY, out_norm=dict(type='BN'))
    load_pretrained(fresh, str(result.checkpoint))
    loaded = fresh.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())


def test_pretraining_is_repeatable(folders: Path, tmp_path: Path) -> None:
    files = [tmp_path / f'{i}.pth' for i in range(2)]
    for file in files:
        backbone = tiny_backbone()
        torch.manual_seed(1)
        pretrain(backbone, folders, file, steps=3, batch_size=4)
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('content', ['one class', 'two sizes', 'unreadable', 'nothing'])
def test_pictures_that_do_not_fit_are_refused(content: str, folders: Path, tmp_path: Path) -> None:
    root = folders
    if content == 'one class':
        (root / 'red').rename(tmp_path / 'away')
    elif content == 'two sizes':
        cv2.imwrite(str(root / 'red' / '0.jpg'), np.zeros((16, 16, 3), np.uint8))
    elif content == 'unreadable':
        (root / 'red' / '0.jpg').write_text('no picture')
    else:
        root = tmp_path / 'missing'
    with pytest.raises(UserError, match='not all readable and of one size'):
        read_folders(root)


@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.folder)
def test_each_model_starts_from_the_pretrained_weights(part: Part, tmp_path: Path) -> None:
    cfg = demo_config(part, tmp_path, tmp_path / 'weights.pth', seed=3)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    assert cfg.train_dataloader.dataset.data_root == str(tmp_path / 'data')
    assert cfg.work_dir == str(tmp_path / part.folder) and cfg.randomness.seed == 3
    assert cfg.train_cfg.val_begin > cfg.train_cfg.max_iters


@pytest.mark.parametrize('kind', ['missing', 'empty', 'a demo'])
def test_a_folder_of_its_own_is_started_over(kind: str, tmp_path: Path) -> None:
    root = tmp_path / 'deep' / 'demo'
    if kind != 'missing':
        root.mkdir(parents=True)
    if kind == 'a demo':
        demo._fresh_folder(root)
        (root / 'old.txt').write_text('from an earlier run')
    assert demo._fresh_folder(root) == root
    assert [path.name for path in root.iterdir()] == ['.demo']


@pytest.mark.parametrize('kind', ['other files', 'a file', 'below a file'])
def test_what_is_not_a_demo_is_left_alone(kind: str, tmp_path: Path) -> None:
    keep = tmp_path / 'thesis.txt'
    keep.write_text('important')
    root = {'other files': tmp_path, 'a file': keep, 'below a file': keep / 'demo'}[kind]
    with pytest.raises(UserError):
        demo._fresh_folder(root)
    assert keep.read_text() == 'important'


@pytest.mark.parametrize(('value', 'status'), [(0.7, 0), (0.6, 0), (0.59, 1)])
def test_the_exit_status_says_whether_all_bars_are_reached(
    value: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [Score('box AP50', 0.9, 0.6), Score('mask AP50', value, 0.6)]
    monkeypatch.setattr(demo, 'run_demo', lambda work_dir, seed: scores)
    main = runpy.run_path(str(PROJECT / 'tools' / 'demo.py'))['main']
    assert main(['--work-dir', 'unused']) == status
    assert ('missed: mask AP50' in capsys.readouterr().err) == bool(status)


def test_an_error_is_two_lines_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'thesis.txt').write_text('important')
    main = runpy.run_path(str(PROJECT / 'tools' / 'demo.py'))['main']
    assert main(['--work-dir', str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
