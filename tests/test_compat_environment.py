"""Does the environment check find what breaks an installation, and does it say how to mend it?"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dense
from dense.compat import EnvironmentReport, Problem, check_environment, environment, install

install()

PROJECT = environment.PROJECT
DOCTOR = PROJECT / 'tools' / 'doctor.py'
IS_FORK = 'onedl-mmengine' in importlib.metadata.packages_distributions()['mmengine']
FAMILY = 'onedl' if IS_FORK else 'openmmlab'
MM = re.escape(f'install -c constraints.txt --no-deps --group {FAMILY}')
CV = re.escape('install -c constraints.txt --no-deps --group openmmlab')
OTHER = re.escape('install -c constraints.txt -e .')


def add_distribution(folder: Path, name: str, version: str, module: str) -> None:
    """Write the metadata that an installed distribution leaves in site-packages."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (info / 'top_level.txt').write_text(f'{module}\n')


def problems_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Problem, ...]:
    monkeypatch.setattr(sys, 'path', [str(folder), *sys.path])
    return check_environment().problems


@pytest.fixture(scope='module')
def sound() -> EnvironmentReport:
    return check_environment()


def run(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    environ = {**os.environ, 'COLUMNS': '100', **variables}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120)


@pytest.mark.smoke
def test_this_environment_is_well(sound: EnvironmentReport) -> None:
    assert sound.problems == ()
    assert sound.ok
    assert 'nms' in sound.operators or sound.origin == 'compiled'
    assert set(sound.versions) == {'python', *environment.MODULES}


DUPLICATES = (
    ('mmcv', 'mmcv-full', MM),
    ('mmcv', 'mmcv-lite' if IS_FORK else 'onedl-mmcv', MM),
    ('mmdet', 'mmdet' if IS_FORK else 'onedl-mmdetection', MM),
    ('mmseg', 'mmsegmentation' if IS_FORK else 'onedl-mmsegmentation', MM),
    ('mmengine', 'mmengine' if IS_FORK else 'onedl-mmengine', MM),
    ('mmengine', 'mmengine-lite', MM),
    ('cv2', 'opencv-python', CV),
    ('cv2', 'opencv-contrib-python', CV),
)


@pytest.mark.smoke
@pytest.mark.parametrize(('module', 'name', 'install_again'), DUPLICATES)
def test_two_owners_of_a_package(
    module: str, name: str, install_again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (owner,) = importlib.metadata.packages_distributions()[module]
    version = environment.BOUNDS.get(name, ('4.12', None))[0]
    add_distribution(tmp_path, name, version, module)
    (problem,) = [item for item in problems_with(tmp_path, monkeypatch) if 'own the package' in item.cause]
    assert f'{name} {version}' in problem.cause and f'{owner} ' in problem.cause
    both = ' '.join(sorted([name, owner]))
    assert re.fullmatch(rf'\S+ -m pip uninstall -y {both} && \S+ -m pip {install_again}', problem.remedy)


UNSUPPORTED = (
    ('timm', 'timm', '0.9.16', OTHER),
    ('numpy', 'numpy', '1.24.4', OTHER),
    ('opencv-python-headless', 'cv2', '4.5.1.48', CV),
    *(
        (
            ('onedl-mmcv', 'mmcv', '2.4.0', MM),
            ('onedl-mmdetection', 'mmdet', '3.4.0', MM),
            ('onedl-mmsegmentation', 'mmseg', '1.3.0', MM),
            ('onedl-mmengine', 'mmengine', '0.11.0', MM),
        )
        if IS_FORK
        else (
            ('mmcv-lite', 'mmcv', '2.2.0', MM),
            ('mmdet', 'mmdet', '2.28.2', MM),
            ('mmsegmentation', 'mmseg', '0.30.0', MM),
            ('mmengine', 'mmengine', '0.9.1', MM),
        )
    ),
)


@pytest.mark.smoke
@pytest.mark.parametrize(('name', 'module', 'version', 'install_again'), UNSUPPORTED)
def test_unsupported_version(
    name: str, module: str, version: str, install_again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_distribution(tmp_path, name, version, module)
    (problem,) = problems_with(tmp_path, monkeypatch)
    assert problem.cause.startswith(f'{name} {version} is not supported; supported is >= ')
    assert re.fullmatch(rf'\S+ -m pip {install_again}', problem.remedy)


def test_what_a_failed_installation_left_behind_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / '~imm-1.0.dist-info').mkdir()
    assert problems_with(tmp_path, monkeypatch) == ()


def test_torch_and_torchvision_that_do_not_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_distribution(tmp_path, 'torchvision', '0.24.1', 'torchvision')
    add_distribution(tmp_path, 'torch', '2.14.1+cu130', 'torch')
    (problem,) = problems_with(tmp_path, monkeypatch)
    assert problem.cause == 'torchvision 0.24.1 does not match torch 2.14.1+cu130.'
    assert problem.remedy.endswith("-m pip install 'torchvision==0.29.*'")


@pytest.mark.parametrize('module', environment.MODULES)
def test_missing_package(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provided = environment._provided
    monkeypatch.setattr(environment, '_provided', lambda item: [name for name in provided(item) if name != module])
    (problem,) = check_environment().problems
    command = CV if module == 'cv2' else MM if module.startswith('mm') else OTHER
    assert module in problem.cause and problem.cause.endswith(' is not installed.')
    assert re.fullmatch(rf'\S+ -m pip {command}', problem.remedy)


@pytest.mark.parametrize(
    ('version', 'number'),
    [('2.14.1+cu130', (2, 14, 1)), ('2.2.0', (2, 2)), ('2.2', (2, 2)), ('3.0.0rc1', (3,)), ('unknown', ())],
)
def test_version_numbers(version: str, number: tuple[int, ...]) -> None:
    assert environment._number(version) == number


def test_bounds_agree_with_the_project_file() -> None:
    text = (PROJECT / 'pyproject.toml').read_text()
    for name, (low, high) in environment.BOUNDS.items():
        requirement = re.search(rf'"{name}([=>][^"]*)"', text)
        if name == 'mmcv':
            continue  # the full package, which may take the place of mmcv-lite
        assert requirement is not None, name
        if name.startswith('onedl-'):
            assert requirement[1] == f'=={low}'
        else:
            assert requirement[1] == f'>={low}' + (f',<{high}' if high else '')


@pytest.mark.slow
def test_stubs_of_packages_imported_too_early_are_found(tmp_path: Path) -> None:
    package = tmp_path / 'mmdet'
    package.mkdir()
    (package / '__init__.py').write_text(
        'def nms(*args):\n    raise RuntimeError("nms requires mmcv to be compiled with ops.")\n'
        'class RoIAlign:\n    def __init__(self):\n'
        '        raise RuntimeError("RoIAlign requires mmcv to be compiled with ops.")\n'
        'def sound():\n    return "fine"\n'
    )
    script = (
        'import mmdet, dense.compat as compat\nassert mmdet.__file__.startswith(__import__("sys").argv[1])\n'
        'print(*[p.cause + "|" + p.remedy for p in compat.check_environment().problems], sep="\\n")'
    )
    done = run('-c', script, tmp_path, cwd=PROJECT, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if 'before dense' in line]
    assert 'keeps 2 broken operators' in line
    assert 'import dense' in line.split('|')[1] and 'again' in line.split('|')[1]


@pytest.mark.smoke
def test_a_failed_import_before_ours_is_recovered_or_reported() -> None:
    script = (
        'try:\n    import mmdet.models\nexcept ImportError:\n    print("failed at first")\n'
        'import dense\nimport mmdet.models\nfrom mmdet.models.layers import bbox_nms\n'
        'print(bbox_nms.batched_nms.__module__)\n'
        'print(*[p.cause for p in dense.compat.check_environment().problems], sep="\\n")'
    )
    done = run('-c', script, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert 'failed at first' in done.stdout or dense.compat.extension.origin() == 'compiled'
    # Upstream's modules fail as a whole and are imported again; those of the fork keep their stubs.
    is_whole = '\nmmcv.ops.nms\n' in done.stdout
    is_reported = all('mmdet was imported before dense and keeps' in text for text in (done.stdout, done.stderr))
    assert is_whole != is_reported


@pytest.mark.smoke
def test_doctor_on_a_sound_environment(tmp_path: Path) -> None:
    done = run(DOCTOR, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ''
    assert 'No problem found.' in done.stdout
    assert 'Operators of mmcv' in done.stdout


def test_doctor_without_any_package(tmp_path: Path) -> None:
    done = run('-S', '-E', DOCTOR, cwd=tmp_path)  # -S: without site-packages
    assert done.returncode == 1
    assert 'Traceback' not in done.stdout + done.stderr
    assert re.findall(r'torch +not installed', done.stdout)
    assert '2 problems found' in done.stdout and done.stdout.count('-m pip install') == 2
    page = re.sub(r'\s+', ' ', done.stdout)
    assert 'torch, torchvision, timm, numpy are not installed.' in page
    assert 'opencv-python-headless (the package cv2), mmengine, mmcv-lite (the package mmcv), mmdet, ' in page


@pytest.mark.slow
def test_doctor_with_a_broken_package(tmp_path: Path) -> None:
    (tmp_path / 'mmcv.py').write_text('raise RuntimeError("this mmcv is broken")\n')
    done = run(DOCTOR, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert 'mmcv is installed but cannot be imported: this mmcv is broken' in done.stdout
    assert '--force-reinstall' in done.stdout
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.parametrize('width', [80, 100, 120])
def test_the_page_fits_its_width_and_commands_stay_whole(width: int, sound: EnvironmentReport) -> None:
    command = 'python -m pip uninstall -y ' + ' '.join(f'distribution-{i}' for i in range(12))
    report = EnvironmentReport(
        versions=sound.versions,
        machine=sound.machine,
        operators=sound.operators,
        origin=sound.origin,
        problems=(Problem('a long cause ' * 20, command), Problem('short', 'make venv')),
    )
    lines = report.page(width).splitlines()
    free = [str(sys.executable), str(PROJECT), '->']  # paths and commands are never broken
    assert [line for line in lines if len(line) > width and not any(part in line for part in free)] == []
    assert f'   -> {command}' in lines
    assert not report.ok


def test_every_module_is_tried() -> None:
    assert {module for module, *_ in DUPLICATES} == set(environment.WITHOUT_DEPENDENCIES)
    # An older torch or torchvision is one half of a pair that does not belong together, too.
    assert {module for _, module, *_ in UNSUPPORTED} == set(environment.MODULES) - {'torch', 'torchvision'}
