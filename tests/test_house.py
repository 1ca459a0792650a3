"""Is the code in order: small files, imports in one direction, layered subpackages?

Imports inside functions and for type checking count, too. Imports of the packages that contain a module do not count:
Python does them by itself. A module imported from a package counts as the module, not as the package.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ('backbones', 'dense', 'tools')
FILES = [path for package in PACKAGES for path in sorted((PROJECT / package).rglob('*.py'))]
TESTS = sorted((PROJECT / 'tests').rglob('*.py'))
LONGEST = 400  # lines of a file
MOST_IN_ROOT = 4  # files of dense that lie in no room

# The libraries that backbones stands on. The packages of the tasks come with dense alone.
BACKBONES_NEED = {
    'filelock',
    'huggingface_hub',
    'mmengine',
    'numpy',
    'safetensors',
    'timm',
    'torch',
    'torchvision',
    'tqdm',
}
# Rooms of dense that a command stands for: nothing below them knows of them.
COMMANDS = {'analysis', 'benchmark', 'demo', 'export', 'predict'}


def name_of(path: Path, root: Path = PROJECT) -> str:
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for path in FILES}


def imported_names(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """What the import statements of a module say: module, and what is taken from it, if anything."""
    package = name if path.name == '__init__.py' else name.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, '') for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit('.', node.level - 1)[0] if node.level > 1 else package
            source = '.'.join(part for part in (above if node.level else '', node.module) if part)
            yield from ((source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
            yield from ((name.value, '') for name in node.args[:1] if isinstance(name, ast.Constant))


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that a module imports: those of ``modules`` by their full names, others by their packages'."""
    found = set()
    for source, taken in imported_names(name, path):
        whole = f'{source}.{taken}'
        found.add(whole if whole in modules else source if source in modules else source.partition('.')[0])
    return found - {name}


IMPORTS = {name: imports_of(name, path, MODULES) for name, path in MODULES.items()}


def inner(*packages: str) -> dict[str, set[str]]:
    """The imports among the modules of some packages."""
    return {
        name: {other for other in others if other.partition('.')[0] in packages}
        for name, others in IMPORTS.items()
        if name.partition('.')[0] in packages
    }


def room_of(name: str) -> str:
    """``engine`` for ``dense.engine.launch``; ``errors`` for ``dense.errors``; ``''`` for what registers it all."""
    return '.'.join(name.split('.')[1:2])


def rooms() -> dict[str, dict[str, list[str]]]:
    """Room -> room that it imports -> the imports."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, others in inner('dense').items():
        needs = found.setdefault(room_of(name), defaultdict(list))
        for other in others:
            if room_of(other) != room_of(name):
                needs[room_of(other)].append(f'{name} -> {other}')
    return found


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, each imported by the next, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize('path', [*FILES, *TESTS], ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_everything_of_dense_has_its_room() -> None:
    in_root = sorted(path.name for path in (PROJECT / 'dense').glob('*.py'))
    assert len(in_root) <= MOST_IN_ROOT, in_root


def test_no_circle_of_modules() -> None:
    circle = circle_of(inner('backbones', 'dense'))
    assert not circle, ' <- '.join(circle)


def test_no_circle_of_rooms() -> None:
    found = rooms()
    circle = circle_of({room: set(needs) for room, needs in found.items()})
    assert not circle, [found[room][need] for need, room in pairwise(circle)]


def test_arrows_point_from_tools_to_dense_to_backbones() -> None:
    outer = {package: {other.partition('.')[0] for name in inner(package) for other in IMPORTS[name]}
             for package in PACKAGES}  # fmt: skip
    own = {package: outer[package] & set(PACKAGES) for package in PACKAGES}
    assert own == {'backbones': {'backbones'}, 'dense': {'dense', 'backbones'}, 'tools': {'tools', 'dense'}}
    foreign = outer['backbones'] - set(PACKAGES) - sys.stdlib_module_names
    assert foreign <= BACKBONES_NEED, 'backbones has to work in any project of MMEngine'


def test_commands_stand_at_the_top() -> None:
    known = {room: set(needs) & COMMANDS for room, needs in rooms().items() if room not in COMMANDS}
    assert {room: needs for room, needs in known.items() if needs} == {}


def test_errors_stand_at_the_bottom() -> None:
    assert IMPORTS['dense.errors'] <= sys.stdlib_module_names


def test_configs_import_nothing() -> None:
    """They are data; ``custom_imports`` names what has to be imported."""
    paths = (PROJECT / 'configs').rglob('*.py')
    statements = {path.name: {type(node) for node in ast.walk(ast.parse(path.read_text()))} for path in paths}
    assert [name for name, kinds in statements.items() if kinds & {ast.Import, ast.ImportFrom}] == []
