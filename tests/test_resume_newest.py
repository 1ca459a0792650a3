"""Does ``--resume`` take the newest checkpoint that is whole, and say which one it left aside?"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config

from backbones import checksums, serialization
from dense.engine import resume
from dense.engine.launch import train
from dense.engine.resume import checkpoints
from dense.errors import UserError


@pytest.fixture
def stopped(tmp_path: Path) -> Config:
    """A run of three steps, each of them saved."""
    cfg = toy_config(tmp_path / 'run', steps=3)
    train(cfg)
    cfg.resume = True
    return cfg


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        checksums.record(path)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    'truncated': (cut, 'SHA-256'),
    'a flipped bit': (flip, 'SHA-256'),
    'nothing in it': (lambda path: path.write_bytes(b''), 'SHA-256'),
    'weights that are not finite': (
        rewrite(lambda content: content['state_dict']['layers.0.weight'].fill_(float('nan'))),
        'NaN or infinite weights: layers.0.weight',
    ),
    'no optimizer': (rewrite(lambda content: content.pop('optimizer')), 'optimizer missing'),
    'no weights': (rewrite(lambda content: content.pop('state_dict')), 'state_dict missing'),
    'truncated, without its hash': (lambda path: (cut(path), checksums.forget(path)), 'not a readable checkpoint'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_the_one_before_is_taken_and_both_are_named(
    name: str, stopped: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, why = DAMAGES[name]
    newest, before = Path(stopped.work_dir, 'iter_3.pth'), Path(stopped.work_dir, 'iter_2.pth')
    expected = torch.load(newest, weights_only=True)['state_dict']
    damage(newest)
    stopped.default_hooks.checkpoint = None
    capfd.readouterr()
    runner = train(stopped)
    lines = capfd.readouterr().out.splitlines()
    assert any('WARNING' in line and str(newest) in line and why in line for line in lines), lines
    assert any(f'from the earlier {before} instead of {newest}' in line for line in lines)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runner.model.state_dict().items())


@pytest.mark.parametrize('name', DAMAGES)
def test_a_file_that_was_named_is_refused(name: str, stopped: Config) -> None:
    path = Path(stopped.work_dir, 'iter_3.pth')
    DAMAGES[name][0](path)
    stopped.load_from = str(path)
    with pytest.raises(ValueError, match=DAMAGES[name][1]):
        train(stopped)


def test_the_pointer_never_wins_over_a_newer_whole_file(stopped: Config) -> None:
    """The run was killed between the checkpoint and the pointer."""
    Path(stopped.work_dir, 'last_checkpoint').write_text(str(Path(stopped.work_dir, 'iter_1.pth')))
    assert train(stopped).cfg.load_from == str(Path(stopped.work_dir, 'iter_3.pth'))


def test_copied_files_keep_their_order(stopped: Config, tmp_path: Path) -> None:
    """A copy gives files new times, often in the order of their names."""
    shutil.copytree(stopped.work_dir, tmp_path / 'copy')
    for age, name in enumerate(('iter_3.pth', 'iter_1.pth', 'iter_2.pth')):
        os.utime(tmp_path / 'copy' / name, (age, age))
    assert [path.name for path in checkpoints(tmp_path / 'copy')] == ['iter_3.pth', 'iter_2.pth', 'iter_1.pth']


def test_a_new_run_in_the_folder_of_a_longer_one_goes_on_from_its_own_files(stopped: Config) -> None:
    cfg = toy_config(Path(stopped.work_dir), steps=2)
    cfg.default_hooks.checkpoint.interval = 2
    train(cfg)
    assert next(checkpoints(cfg.work_dir)).name == 'iter_2.pth'


def test_the_checkpoint_is_read_once(stopped: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def load(path: Path, *args: object, **kwargs: object) -> object:
        read.append(Path(path))
        return original(path, *args, **kwargs)

    original = serialization.load_file
    for module in (resume, serialization):
        monkeypatch.setattr(module, 'load_file', load)
    monkeypatch.setattr('dense.compat.checkpoints.load_file', load)
    train(stopped)
    assert read == [Path(stopped.work_dir, 'iter_3.pth')]


def test_a_folder_without_a_whole_checkpoint_is_an_error(stopped: Config) -> None:
    for path in Path(stopped.work_dir).glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match='none of the 3 checkpoints') as caught:
        train(stopped)
    assert len(str(caught.value).splitlines()) == 2
