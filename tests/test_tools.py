"""Do the commands train, test and resume as a user types them?"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import product
import pytest
import torch

from dense import project
from dense.engine import config as engine_config
from dense.engine.launch import load_config, say_device
from dense.project import config_names, find_config

PROJECT = Path(__file__).resolve().parent.parent
LEAVES = sorted(
    str(path.relative_to(PROJECT)) for path in (PROJECT / 'configs').rglob('*.py') if '_base_' not in path.parts
)
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def tool(name: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(f'tools_{name}', PROJECT / 'tools' / f'{name}.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


# Every command, and options that it has to explain.
COMMANDS = {
    'benchmark': ['--baseline', '--shape', '+fused'],
    'configs': ['PATTERN'],
    'complexity': ['--shape', '--all', '--json'],
    'demo': ['--work-dir'],
    'doctor': ['Exit status'],
    'export': ['--out', '--format', '--shape', '--backbone', '--logits'],
    'infer': ['--out', '--score'],
    'table': ['--check'],
    'test': ['--data-root', '--cfg-options', '--tta'],
    'train': ['--data-root', '--cfg-options', '--resume'],
}


def run_and_watch_imports(arguments: list[str], folder: Path) -> tuple[str, set[str]]:
    """Run Python; what it prints, and the packages and modules that it imports."""
    command, env = [sys.executable, '-X', 'importtime', *arguments], {**ENV, 'COLUMNS': '80'}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith('import time:')]
    return done.stdout, {line.rpartition('|')[2].strip().partition('.')[0] for line in lines}


@pytest.mark.parametrize('name', COMMANDS)
def test_help_answers_at_once(name: str, tmp_path: Path) -> None:
    """It waits for no library: PyTorch and MMEngine take seconds to be imported."""
    _, at_any_start = run_and_watch_imports(['-c', ''], tmp_path)
    shown, imported = run_and_watch_imports([str(PROJECT / 'tools' / f'{name}.py'), '--help'], tmp_path)
    assert imported - at_any_start - sys.stdlib_module_names == {'tools'}
    assert [option for option in COMMANDS[name] if option not in shown] == []
    assert ('--traceback' in shown) is (name != 'doctor')
    assert max(map(len, shown.splitlines())) <= 120


def test_every_command_is_thin() -> None:
    assert sorted(COMMANDS) == product.COMMANDS
    lines = {name: len((PROJECT / 'tools' / f'{name}.py').read_text().splitlines()) for name in COMMANDS}
    assert max(lines.values()) <= 100, lines


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_say_how_they_are_used(name: str) -> None:
    done = subprocess.run([str(PROJECT / 'tools' / name)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('usage:')


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from texts(value)


@pytest.mark.parametrize('leaf', LEAVES)
def test_data_root_moves_all_data_of_every_config(leaf: str) -> None:
    places = [f'{split}_{what}' for split in ('train', 'val', 'test') for what in ('dataloader', 'evaluator')]

    def below(root: str, cfg: Any) -> list[tuple[str, str]]:
        named = [(place, text) for place in places for text in texts(cfg.get(place))]
        return [(place, text.removeprefix(root)) for place, text in named if text.startswith(root)]

    before = load_config(leaf)
    old = before.train_dataloader.dataset.data_root.rstrip('/')
    after = load_config(leaf, data_root='/copy')
    assert below(old, after) == []
    moved, expected = below('/copy', after), below(old, before)
    assert [(place, text.strip('/')) for place, text in moved] == [(p, text.strip('/')) for p, text in expected]
    assert {place for place, _ in moved} >= {'train_dataloader', 'val_dataloader', 'test_dataloader'}


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(LEAVES[0]) == PROJECT / LEAVES[0]
    assert load_config(LEAVES[0]).work_dir == str(PROJECT / 'work_dirs' / Path(LEAVES[0]).stem)
    own = tmp_path / LEAVES[0]
    own.parent.mkdir(parents=True)
    own.write_text('train_cfg = None\n')
    assert find_config(LEAVES[0]) == own


@pytest.mark.parametrize('name', ['mini/{}.py', '{}.py', '{}', 'configs/mini/{}.py'])
def test_configs_are_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (leaf,) = config_names('MINI/mask*250i')
    assert find_config(name.format(Path(leaf).stem)) == PROJECT / leaf


def test_an_installation_works_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `data` of an installation is the folder of a package: nothing there may be taken for the user's data.
    monkeypatch.chdir(tmp_path)
    for module in (engine_config, project):
        monkeypatch.setattr(module, 'IS_CLONE', False)
    monkeypatch.setattr(engine_config, 'PROJECT', PROJECT / 'dense')
    cfg = load_config(PROJECT / config_names('mini/upernet')[0])
    assert cfg.train_dataloader.dataset.data_root == 'data/mini'
    assert cfg.work_dir == str(tmp_path / 'work_dirs' / Path(cfg.filename).stem)


@pytest.mark.parametrize(
    ('arguments', 'status', 'shown'),
    [
        ([], 0, 'usage: dense COMMAND'),
        (['--help'], 0, 'usage: dense COMMAND'),
        (['--version'], 0, 'dense '),
        (['trian'], 2, 'did you mean `dense train`?'),
        (['dance'], 2, "error: there is no command 'dance'"),
        (['train', '--help'], 0, 'usage: dense train'),
        (['train', 'no_such_config.py'], 2, 'error: config file not found'),
        (['train'], 2, 'usage: dense train'),
        (['configs', 'mini/UPERNET*.py'], 0, 'configs/mini/upernet_inceptionnext-a_450i_mini-128x128.py\n'),
        (['configs', 'nothing'], 1, 'no config matches'),
        (['complexity'], 2, 'give CONFIG, or --all'),
    ],
)
def test_one_command_for_all(arguments: list[str], status: int, shown: str) -> None:
    command = [sys.executable, '-m', 'tools', *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=ENV)
    assert done.returncode == status and shown in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


def test_the_one_command_knows_every_tool() -> None:
    listed = importlib.import_module('tools.__main__').COMMANDS
    assert set(listed) == {path.stem for path in (PROJECT / 'tools').glob('[!_]*.py')}


INSIST = {'optim_wrapper.dtype': 'bfloat16'}  # on processors without it, too


def test_options_change_nothing_else(tiny_config_files: dict[str, str]) -> None:
    before = load_config(tiny_config_files['det'])
    after = load_config(
        tiny_config_files['det'],
        options={
            'val_dataloader.batch_size': 7,
            'val_evaluator.metric': 'bbox',
            'param_scheduler.1.power': 2.0,
            **INSIST,
        },
        amp=True,
        seed=5,
        deterministic=True,
    )
    assert (after.val_dataloader.batch_size, after.val_evaluator.metric) == (7, 'bbox')
    assert (after.test_dataloader, after.test_evaluator) == (before.test_dataloader, before.test_evaluator)
    assert [rule.power for rule in after.param_scheduler[1:]] == [2.0]
    assert after.optim_wrapper.type == 'DenseAmpOptimWrapper'
    assert dict(after.randomness) == dict(seed=5, deterministic=True)


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_train_then_test(
    task: str,
    own_data: Path,
    tmp_path: Path,
    tiny_command: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    (own_data / 'images' / 'training' / '2.jpg').write_bytes(b'no image')
    work_dir, pictures, out = tmp_path / 'work', tmp_path / 'pictures', tmp_path / 'out' / 'metrics.json'
    command = tiny_command(task, own_data, work_dir, iters=4)
    say_device.cache_clear()  # as in a new process
    assert tool('train')([*command, 'optim_wrapper.dtype=bfloat16', '--amp']) == 0
    shown = capfd.readouterr().out
    assert 'no GPU found: running on the CPU' in shown or torch.cuda.is_available()
    assert shown.count('SyncBN') == 1
    assert shown.count('replace those of the config: model.') == 1  # the config's heads have COCO's or ADE20K's number
    assert 'images/training/2.jpg: skipped (unreadable files so far: 1)' in shown
    assert 'unreadable files skipped: 1;' in shown
    assert len(shown.splitlines()) < 20 and 'WARNING' not in shown and 'mmengine' not in shown, shown

    # What the checkpoint holds opens without any allowance, and the library's log went to the file.
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=True)
    assert checkpoint['meta']['iter'] == 4 and checkpoint['meta']['seed'] == 0
    (log,) = work_dir.glob('*/*.log')
    assert 'Iter(train) [4/4]' in log.read_text() and 'unreadable files' in log.read_text()

    config, *rest = command
    more = ['--out', str(out), '--show-dir', str(pictures)] + (['--tta'] if task == 'seg' else [])
    assert tool('test')([config, str(work_dir / 'iter_4.pth'), *rest, *more]) == 0
    shown = capfd.readouterr().out
    metrics = json.loads(out.read_text())
    assert ('mIoU' in metrics) if task == 'seg' else ('coco/segm_mAP_50' in metrics)
    for name, value in metrics.items():
        assert [f'{value:.4f}'] == [line.split()[1] for line in shown.splitlines() if line.split()[:1] == [name]]
    drawn = [cv2.imread(str(path)) for path in pictures.glob('*.png')]
    assert len(drawn) >= 6 and all(picture is not None for picture in drawn)


def test_load_from_starts_from_what_fits(
    tiny_data: Path, tmp_path: Path, tiny_command: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    def start(*more: str) -> int:
        return tool('train')(tiny_command('seg', tiny_data, tmp_path / 'work', *more, iters=1))

    assert start() == 0
    first = tmp_path / 'work' / 'iter_1.pth'
    content = torch.load(first, weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'] = torch.zeros(99)  # another number of classes
    torch.save(content, tmp_path / 'other.pth')
    capfd.readouterr()
    assert start('optim_wrapper.optimizer.lr=0.0', '--load-from', str(tmp_path / 'other.pth')) == 0
    total = len(content['state_dict'])
    assert f'loaded {total - 1} of {total} tensors; new: decode_head.conv_seg.bias' in capfd.readouterr().out
    after = torch.load(first, weights_only=True)['state_dict']
    trained = [name for name in after if name.endswith('weight') and after[name].ndim == 4]
    assert trained and all(torch.equal(after[name], content['state_dict'][name]) for name in trained)


def test_resume_goes_on_in_the_work_dir(
    tiny_data: Path, tmp_path: Path, tiny_command: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tool('train')(tiny_command('seg', tiny_data, tmp_path, iters=2)) == 0
    capfd.readouterr()
    assert tool('train')(tiny_command('seg', tiny_data, tmp_path, '--resume', iters=3)) == 0
    shown = capfd.readouterr().out
    assert f'continuing {tmp_path}/iter_2.pth after 2 steps' in shown and 'train 3/3' in shown
    assert (tmp_path / 'iter_3.pth').is_file()


def test_weights_that_are_not_finite_go_nowhere(
    tiny_data: Path, tmp_path: Path, tiny_command: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert tool('train')(tiny_command('seg', tiny_data, tmp_path, iters=2)) == 0
    path = tmp_path / 'diverged.pth'
    content = torch.load(tmp_path / 'iter_2.pth', weights_only=True)
    content['state_dict']['decode_head.conv_seg.weight'].view(-1)[-1] = float('nan')
    torch.save(content, path)
    written = path.read_bytes()
    config, *rest = tiny_command('seg', tiny_data, tmp_path, iters=3)
    attempts = {
        'test': [config, str(path), *rest],
        'train': [config, *rest, '--resume', str(path)],
        'load': [config, *rest, '--load-from', str(path)],
    }
    for name, arguments in attempts.items():
        capfd.readouterr()
        assert tool('test' if name == 'test' else 'train')(arguments) == 2
        error = capfd.readouterr().err
        assert 'NaN or infinite weights: decode_head.conv_seg.weight\n' in error, error
        assert 'remedy: give an earlier checkpoint' in error
    assert path.read_bytes() == written and not (tmp_path / 'iter_3.pth').exists()


@pytest.mark.slow
def test_two_processes_train_together(tiny_data: Path, tmp_path: Path, tiny_command: Callable[..., list[str]]) -> None:
    config, *rest = tiny_command('seg', tiny_data, tmp_path / 'work', iters=4)
    command = [str(PROJECT / 'tools' / 'dist_train.sh'), config, '2', *rest]
    env = {**ENV, 'PYTHON': sys.executable, 'MASTER_PORT': '29617', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('train 4/4') == 1, 'only the main process may write to the screen'
    assert (tmp_path / 'work' / 'iter_4.pth').is_file()
