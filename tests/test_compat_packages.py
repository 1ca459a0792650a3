"""Are installed packages found without pkg_resources, on new Pythons, and under the forks' distribution names?"""

import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import mmcv.utils.ext_loader
import mmdet
import mmengine.hub
import mmengine.model.utils
import mmengine.utils
import mmengine.utils.dl_utils.misc
import mmseg
import pytest
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

import dense  # noqa: F401
from dense.compat import install, packages
from dense.compat.rebind import rebind

install()

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def without_old_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on setuptools >= 82 and Python >= 3.14."""
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)


BASES = (
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'MaskRCNN'),
    ('mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'MaskRCNN'),
    ('mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 'EncoderDecoder'),
    ('mmseg::_base_/models/upernet_r50.py', 'EncoderDecoder'),
)


@pytest.mark.parametrize(('base', 'model'), BASES)
def test_configs_of_the_packages_are_inherited(base: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    path.write_text(f'_base_ = {base!r}\nwork_dir = "here"\n')
    config = Config.fromfile(path)
    assert config.model.type == model
    assert config.work_dir == 'here'


@pytest.mark.parametrize(('base', 'model'), [BASES[0], BASES[2]])
def test_hub_finds_configs(base: str, model: str) -> None:
    assert mmengine.hub.get_config(base).model.type == model


FOLDERS = (
    ('mmdet', mmdet),
    ('mmseg', mmseg),
    ('mmsegmentation', mmseg),
    ('mmcv', mmcv),
    ('mmcv-full', mmcv),
    ('mmcv-lite', mmcv),
    ('mmengine', mmengine),
    ('mmengine-lite', mmengine),
    ('pytest', pytest),
    ('PyYAML', importlib.import_module('yaml')),
)


@pytest.mark.parametrize(('name', 'module'), FOLDERS, ids=[name for name, _ in FOLDERS])
def test_packages_are_found_by_either_name(name: str, module: object) -> None:
    assert mmengine.utils.is_installed(name)
    assert mmengine.utils.get_installed_path(name) == str(Path(module.__file__).parent)


def test_what_is_not_installed_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not mmengine.utils.is_installed('no-such-distribution')
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        mmengine.utils.get_installed_path('no-such-distribution')
    (tmp_path / 'only_a_folder').mkdir()
    monkeypatch.setattr(sys, 'path', [*sys.path, str(tmp_path)])
    assert not mmengine.utils.is_installed('only_a_folder')
    with pytest.raises(RuntimeError, match='namespace'):
        mmengine.utils.get_installed_path('only_a_folder')


QUESTIONS = (
    mmengine.utils.dl_utils.misc.mmcv_full_available,
    mmengine.model.utils.mmcv_full_available,
    mmcv.utils.ext_loader.check_ops_exist,
)


@pytest.mark.parametrize('question', QUESTIONS)
def test_the_extension_is_found_without_find_loader(question: Callable[[], bool]) -> None:
    assert question() is True


def test_a_second_install_changes_nothing() -> None:
    before = (list(sys.meta_path), dict(CheckpointLoader._schemes), CheckpointLoader.load_checkpoint.__func__)
    install()
    assert before == (list(sys.meta_path), dict(CheckpointLoader._schemes), CheckpointLoader.load_checkpoint.__func__)
    assert mmengine.config.config.is_installed is packages.is_installed


def test_a_module_without_a_spec_does_not_stop_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'hand_made', type(sys)('hand_made'))
    assert not packages.is_installed('hand_made')


def test_rebind_reaches_copies_and_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    home, copy, other = (type(sys)(name) for name in ('mmdet.home', 'mmdet.copy', 'elsewhere'))
    old, new = (lambda: 'old'), (lambda: 'new')
    for module in (home, copy, other):
        module.function = old
        monkeypatch.setitem(sys.modules, module.__name__, module)
    rebind(home, 'function', new)
    assert (home.function(), copy.function(), other.function()) == ('new', 'new', 'old')


def test_every_other_name_is_looked_up() -> None:
    assert set(packages.EXTRA_MODULES) <= {name for name, _ in FOLDERS}
