"""Is what `pip install` gives a whole product: commands, configs, training, testing, export, prediction?

The wheel is built from the source distribution and installed into a folder that stands before all others on Python's
path, so that neither the clone nor its own installation is imported.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense.data.mini import CLASSES, write_mini
from dense.project import config_names

PROJECT = Path(__file__).resolve().parent.parent
NOT_SOURCE = {'.git', '.venv', '.venv-onedl', 'work_dirs', 'data', 'build', 'dist'}
PACKAGES = {'backbones', 'dense', 'dense_tools'}
CONFIGS = {'det': config_names('mini/mask')[0], 'seg': config_names('mini/upernet')[0]}
STEPS = 2
SHORT = (f'train_cfg.max_iters={STEPS}', f'train_cfg.val_interval={STEPS}', 'train_dataloader.batch_size=2')


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **variables}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    return done


def left_out(folder: str, names: list[str]) -> set[str]:
    generated = {name for name in names if name == '__pycache__' or name.endswith(('_cache', '.egg-info'))}
    return generated | (NOT_SOURCE & {*names} if Path(folder) == PROJECT else set())


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the installed wheel, which was built from the source distribution without any network."""
    root = tmp_path_factory.mktemp('wheel')
    source, site = root / 'source', root / 'site'
    shutil.copytree(PROJECT, source, ignore=left_out)
    build = 'import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])'
    done = run(sys.executable, '-c', build, root, cwd=source)
    assert done.returncode == 0, done.stderr
    (archive,) = root.glob('*.tar.gz')
    offline = ('--no-index', '--no-build-isolation', '--no-deps', '--disable-pip-version-check')
    done = run(sys.executable, '-m', 'pip', 'install', *offline, '--target', site, archive, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


@pytest.fixture
def dense(site: Path, tmp_path: Path) -> Callable[..., str]:
    """Function (*arguments) -> output of the installed command `dense`, run in a folder of its own."""

    def command(*arguments: str | Path) -> str:
        done = run(sys.executable, site / 'bin' / 'dense', *arguments, cwd=tmp_path, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def files(root: Path, pattern: str = '*') -> set[str]:
    found = (path.relative_to(root) for path in root.rglob(pattern) if path.is_file())
    return {path.as_posix() for path in found if '__pycache__' not in path.parts}


def test_the_wheel_holds_all_of_it_and_no_general_names(site: Path) -> None:
    assert files(site / 'dense' / 'configs') == files(PROJECT / 'configs')
    assert files(site / 'dense_tools') == files(PROJECT / 'tools', '*.py')
    for package in ('backbones', 'dense'):
        inside = {name for name in files(site / package) if not name.startswith('configs/')}
        assert inside == files(PROJECT / package) and 'py.typed' in inside
    installed = {path.name for path in site.iterdir() if path.suffix != '.dist-info'}
    assert installed == {*PACKAGES, 'bin'}


def test_the_source_distribution_is_a_clone(site: Path) -> None:
    (archive,) = site.parent.glob('*.tar.gz')
    shutil.unpack_archive(archive, site.parent / 'unpacked', filter='data')
    (root,) = (site.parent / 'unpacked').iterdir()
    for folder in ('backbones', 'configs', 'dense', 'docs', 'tests', 'tools'):
        assert files(root / folder) == files(PROJECT / folder)
    names = ('CHANGELOG.md', 'LICENSE', 'Makefile', 'README.md', 'constraints.txt', 'pyproject.toml', 'setup.py')
    assert all((root / name).read_bytes() == (PROJECT / name).read_bytes() for name in names)


def test_the_installed_packages_are_those_that_run(site: Path, tmp_path: Path) -> None:
    code = 'import backbones, dense.project as p; print(backbones.__file__, p.PROJECT, p.IS_CLONE, p.work_dirs())'
    done = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(site))
    backbones, project, is_clone, work_dirs = done.stdout.split()
    assert (Path(backbones).parent, Path(project)) == (site / 'backbones', site / 'dense')
    assert (is_clone, work_dirs) == ('False', str(tmp_path / 'work_dirs'))


def test_help_needs_no_pytorch(dense: Callable[..., str], site: Path, tmp_path: Path) -> None:
    shown = dense()
    watched = run(sys.executable, '-X', 'importtime', '-m', 'dense_tools', cwd=tmp_path, PYTHONPATH=str(site))
    imported = {line.rpartition('|')[2].strip().partition('.')[0] for line in watched.stderr.splitlines()}
    assert 'dense_tools' in imported and not imported & {'torch', 'numpy', 'mmengine', 'dense'}
    assert 'train' in shown and 'infer' in shown
    assert dense('configs').split() == config_names()
    assert dense('train', '--help').startswith('usage: dense train ')


def test_the_version_is_the_changelogs(dense: Callable[..., str]) -> None:
    newest = re.search(r'^## (\d+\.\d+\.\d+)', (PROJECT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert newest is not None and dense('--version').split() == ['dense', newest[1]]


def test_doctor_names_commands_that_need_no_clone(site: Path, tmp_path: Path) -> None:
    done = run(sys.executable, '-S', site / 'bin' / 'dense', 'doctor', cwd=tmp_path, PYTHONPATH=str(site))
    page = ' '.join(done.stdout.split())
    assert done.returncode == 1 and 'Traceback' not in done.stdout + done.stderr
    assert "-m pip install 'inceptionnext-dense[openmmlab]'" in page
    assert "-m pip install --no-deps 'mmcv-lite>=2.1.0,<2.2'" in page
    assert '-c constraints.txt' not in page and '--group' not in page


def train_and_test(task: str, dense: Callable[..., str], folder: Path) -> Path:
    """Train and test by two names of one config, with data below the current folder, as the config says."""
    write_mini(folder / 'data' / 'mini', num_train=4, num_val=2)
    leaf = CONFIGS[task]
    checkpoint = folder / 'work_dirs' / Path(leaf).stem / f'iter_{STEPS}.pth'
    dense('train', leaf, '--cfg-options', *SHORT, f'default_hooks.checkpoint.interval={STEPS}')
    assert checkpoint.is_file()
    assert ('mIoU' if task == 'seg' else 'coco/segm_mAP') in dense('test', leaf.removeprefix('configs/'), checkpoint)
    return checkpoint


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('task', CONFIGS)
def test_from_training_to_pictures(task: str, dense: Callable[..., str], site: Path, tmp_path: Path) -> None:
    before = files(site)
    checkpoint = train_and_test(task, dense, tmp_path)
    dense('export', Path(CONFIGS[task]).stem, checkpoint, '--out', 'model.onnx')
    dense('infer', 'model.onnx', 'data/mini/images/validation/000001.jpg', '--out', 'results', '--score', '0')
    assert (tmp_path / 'results' / '000001_result.jpg').is_file()
    if task == 'seg':
        labels = np.array(Image.open(tmp_path / 'results' / '000001.png'))
        assert labels.min() >= 1 and labels.max() <= len(CLASSES)
    else:
        found = json.loads((tmp_path / 'results' / '000001.json').read_text())
        assert found and all(CLASSES[row['number'] - 1] == row['label'] and row['mask'] for row in found)
    assert files(site) == before  # nothing was written into the installation
