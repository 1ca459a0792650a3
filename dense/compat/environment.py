"""Reports what is installed, what runs where, and what is wrong with it.

This file and what it imports need only the standard library when they are loaded, so `dense doctor` works
even if the packages that it examines are missing or broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from dense.compat.supported import (
    BOUNDS,
    MODULES,
    OLDEST_PYTHON,
    WITHOUT_DEPENDENCIES,
    install_command,
    python_pip,
)
from dense.console.tables import named_texts
from dense.cpu.cores import usable_cores
from dense.project import IS_CLONE, PROJECT

# Module to the distributions that provide it: name to version.
Owners: TypeAlias = dict[str, dict[str, str]]

# The forks replace an operator that could not be imported with a stub, which says this when it is called.
STUB_TEXT = 'requires mmcv to be compiled'


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the environment.

    Attributes:
        cause: What is wrong, in one line.
        remedy: The command that fixes it, to be run in the clone if there is one, or other advice.
    """

    cause: str
    remedy: str


@dataclass(frozen=True)
class EnvironmentReport:
    """The result of :func:`check_environment`; ``str(report)`` is a page for people to read.

    Attributes:
        versions: What is installed: name to version and distribution.
        machine: Devices and threads: name to text.
        operators: Op of ``mmcv.ops`` to what computes it; empty if that is unknown.
        origin: ``'compiled'``, ``'torchvision'`` or ``'unknown'``: where mmcv's operators come from.
        problems: What is wrong; empty when all is well.
    """

    versions: Mapping[str, str]
    machine: Mapping[str, str]
    operators: Mapping[str, str]
    origin: str
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def page(self, width: int) -> str:
        """Return the report as text.

        Args:
            width: Number of columns; commands are never broken, so that they can be copied.
        """
        blocks = [
            _section('Versions', self.versions.items(), width),
            _section('Machine', self.machine.items(), width),
            _section(f'Operators of mmcv: {self.origin}', _by_source(self.operators), width),
            _problem_list(self.problems, width),
        ]
        return '\n\n'.join(block for block in blocks if block)

    def __str__(self) -> str:
        return self.page(width=min(shutil.get_terminal_size().columns, 120))


def check_environment() -> EnvironmentReport:
    """Examine the Python environment, the packages and the devices.

    It imports torch, torchvision, mmcv and timm to see whether that works; a package that cannot be imported is a
    problem in the report, never an exception.
    """
    owners = _owners()
    problems = _package_problems(owners)
    # Checked before anything is imported here, because it concerns what the caller imported.
    problems += broken_stubs()
    imported, import_problems = _import_all(owners)
    problems += import_problems
    operators, origin, failure = _operators()
    if failure and not problems:  # else it follows from them
        problems.append(Problem(f'the operators of mmcv are missing: {failure}', f'{sys.executable} -c "import dense"'))
    return EnvironmentReport(
        versions=_versions(owners),
        machine=_machine(imported),
        operators=operators,
        origin=origin,
        problems=tuple(problems),
    )


def _owners() -> Owners:
    """Map each module to the distributions that provide it, by name, with their versions."""
    owners: Owners = {module: {} for module in MODULES}
    for item in importlib.metadata.distributions():
        if 'Name' in item.metadata:  # missing in a folder left behind by a failed installation
            name = item.metadata['Name']
            for module in _provided(item):
                # The first on the path is the one that Python imports.
                owners[module].setdefault(_normal(name), item.version)
    return owners


def _package_problems(owners: Owners) -> list[Problem]:
    return [*_duplicates(owners), *_missing(owners), *_unsupported(owners), *_torch_pair(owners)]


def _provided(item: importlib.metadata.Distribution) -> list[str]:
    """Return the modules of :data:`MODULES` that a distribution provides."""
    listed = item.read_text('top_level.txt')
    if listed:
        return [module for module in MODULES if module in listed.split()]
    # Read as text: `item.files` would create an object for each of the 60,000 lines of all distributions together.
    record = '\n' + (item.read_text('RECORD') or '')
    return [module for module in MODULES if f'\n{module}/__init__.py,' in record]


def _normal(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def _family(owners: Owners) -> str:
    """Return the family that most of the modules come from."""
    mm = [name for module in WITHOUT_DEPENDENCIES if module != 'cv2' for name in owners[module]]
    forks = sum(name.startswith('onedl-') for name in mm)
    return 'onedl' if forks > len(mm) - forks else 'openmmlab'


def _duplicates(owners: Owners) -> Iterator[Problem]:
    for module, names in owners.items():
        if len(names) > 1:
            versions = ' and '.join(f'{name} {version}' for name, version in sorted(names.items()))
            yield Problem(
                f'{len(names)} distributions own the package {module}: {versions}; their files overwrite each other.',
                f'{python_pip()} uninstall -y {" ".join(sorted(names))} && {install_command(module, _family(owners))}',
            )


def _missing(owners: Owners) -> Iterator[Problem]:
    family = _family(owners)
    by_command: dict[str, list[str]] = {}
    for module in (module for module, names in owners.items() if not names):
        wanted = MODULES[module][family == 'onedl']
        label = wanted if wanted == module else f'{wanted} (the package {module})'
        by_command.setdefault(install_command(module, family), []).append(label)
    for command, labels in by_command.items():
        yield Problem(f'{", ".join(labels)} {"is" if len(labels) == 1 else "are"} not installed.', command)


def _unsupported(owners: Owners) -> Iterator[Problem]:
    if sys.version_info < OLDEST_PYTHON:
        oldest = '.'.join(map(str, OLDEST_PYTHON))
        yield Problem(f'Python {platform.python_version()} is older than {oldest}.', 'make venv PYTHON=python3.12')
    for module, names in owners.items():
        for name, version in names.items() if len(names) == 1 else ():
            low, high = BOUNDS.get(name, BOUNDS.get(MODULES[module][0], ('0', None)))
            if name not in BOUNDS and module != 'cv2':
                allowed = ' or '.join(dict.fromkeys(MODULES[module]))
                yield Problem(
                    f'{name} {version} provides the package {module}; supported are {allowed}.',
                    f'{python_pip()} uninstall -y {name} && {install_command(module, _family(owners))}',
                )
            elif _number(version) < _number(low) or (high is not None and _number(version) >= _number(high)):
                allowed = f'>= {low}' + (f', < {high}' if high else '')
                yield Problem(
                    f'{name} {version} is not supported; supported is {allowed}.',
                    install_command(module, _family(owners)),
                )


def _number(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``'2.14.1+cu130'`` gives (2, 14, 1)."""
    found = re.match(r'\d+(\.\d+)*', version)
    numbers = [int(part) for part in found.group().split('.')] if found else [0]
    while numbers and numbers[-1] == 0:  # 2.2 and 2.2.0 are the same
        numbers.pop()
    return tuple(numbers)


def _torch_pair(owners: Owners) -> Iterator[Problem]:
    """Check the pair: torch 2.N and torchvision 0.(N + 15) belong together, any other pair fails at import."""
    if len(owners['torch']) != 1 or len(owners['torchvision']) != 1:
        return
    (torch,), (torchvision,) = owners['torch'].values(), owners['torchvision'].values()
    major, minor = (*_number(torch), 0, 0)[:2]
    if major == 2 and (*_number(torchvision), 0, 0)[:2] != (0, minor + 15):
        yield Problem(
            f'torchvision {torchvision} does not match torch {torch}.',
            f"{python_pip()} install 'torchvision==0.{minor + 15}.*'",
        )


def broken_stubs() -> Iterator[Problem]:
    """Find broken stubs that mmdet or mmseg bound instead of operators, because they were imported before ``dense``."""
    loaded = [
        (path, module) for path, module in list(sys.modules.items()) if path.partition('.')[0] in ('mmdet', 'mmseg')
    ]
    found = sorted(f'{path}.{name}' for path, module in loaded for name in _stubs_of(module, path))
    if found:
        yield Problem(
            f'{found[0].partition(".")[0]} was imported before dense and keeps {len(found)} broken '
            f'operator{"s" * (len(found) > 1)}, such as {found[0]}.',
            'put `import dense` before `import mmdet` and `import mmseg`, and start Python (or the notebook) again',
        )


def _stubs_of(module: ModuleType, path: str) -> Iterator[str]:
    for name, value in list(getattr(module, '__dict__', {}).items()):
        if getattr(value, '__module__', None) != path:
            continue
        code = getattr(value if not isinstance(value, type) else value.__dict__.get('__init__'), '__code__', None)
        if code is not None and any(isinstance(text, str) and STUB_TEXT in text for text in code.co_consts):
            yield name


def _import_all(owners: Owners) -> tuple[dict[str, ModuleType], list[Problem]]:
    imported: dict[str, ModuleType] = {}
    problems: list[Problem] = []
    for module in (name for name, names in owners.items() if names):
        try:
            imported[module] = importlib.import_module(module)
        except Exception as error:  # whatever a broken package raises belongs on the page
            again = install_command(module, _family(owners)).replace(' install ', ' install --force-reinstall ', 1)
            problems.append(Problem(f'{module} is installed but cannot be imported: {_first_line(error)}', again))
    return imported, problems


def _operators() -> tuple[dict[str, str], str, str]:
    """Return what serves each op, where all of them come from, and why this is unknown (or nothing)."""
    try:
        extension = importlib.import_module('dense.compat.extension')
        extension.install()
        importlib.import_module('mmcv.ops')
    except Exception as error:  # as above
        return {}, 'unknown', _first_line(error)
    if extension.origin() == 'compiled':
        return {'all': 'mmcv._ext'}, 'compiled', ''
    return extension.served_ops(), extension.origin(), ''


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split('\n')[0]


def _versions(owners: Owners) -> dict[str, str]:
    rows = {'python': f'{platform.python_version()}  {sys.executable}'}
    for module, names in owners.items():
        known = [f'{version}{"" if name == module else f"  ({name})"}' for name, version in names.items()]
        rows[module] = ', '.join(known) or 'not installed'
    return rows


def _machine(imported: Mapping[str, ModuleType]) -> dict[str, str]:
    rows = {'system': f'{platform.system()} {platform.machine()}', 'device': 'unknown: torch cannot be imported'}
    torch: Any = imported.get('torch')
    if torch is not None:
        rows['device'] = _device(torch)
        rows['CUDA of torch'] = torch.version.cuda or 'none: a build for the CPU'
    rows['threads'] = _threads(imported)
    return rows


def _device(torch: Any) -> str:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return ', '.join(f'{device.name} ({device.total_memory / 2**30:.0f} GiB)' for device in devices)
    if torch.backends.mps.is_available():
        return 'Apple GPU (mps)'
    return 'CPU: torch sees no GPU'


def _threads(imported: Mapping[str, ModuleType]) -> str:
    torch: Any = imported.get('torch')
    cv2: Any = imported.get('cv2')
    parts = [f'{usable_cores()} cores']
    if torch is not None:
        parts.append(f'torch uses {torch.get_num_threads()}')
    if cv2 is not None:
        parts.append(f'OpenCV {cv2.getNumThreads()}')
    return ', '.join(parts)


def _by_source(operators: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return rows of (what serves ops, the ops that it serves)."""
    grouped: dict[str, list[str]] = {}
    for name, source in operators.items():
        grouped.setdefault(source, []).append(name)
    return [(source, ', '.join(sorted(names))) for source, names in grouped.items()]


def _section(title: str, rows: Iterable[tuple[str, str]], width: int) -> str:
    return '\n'.join([title, textwrap.indent(named_texts(rows, width - 2), '  ')]).rstrip()


def _problem_list(problems: tuple[Problem, ...], width: int) -> str:
    if not problems:
        return 'No problem found.'
    place = f' Run the commands in {PROJECT}' if IS_CLONE else ''
    lines = [f'{len(problems)} problem{"s" * (len(problems) > 1)} found.{place}']
    for number, problem in enumerate(problems, 1):
        lines += [
            '',
            *textwrap.wrap(f'{number}. {problem.cause}', width, subsequent_indent='   ', break_on_hyphens=False),
        ]
        lines.append(f'   -> {problem.remedy}')
    return '\n'.join(lines)
