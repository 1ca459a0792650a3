"""Does any module need itself by way of others, be it for type checking or inside a function?"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def modules(package: str) -> dict[str, Path]:
    files = (PROJECT / package).rglob('*.py')
    return {'.'.join(path.relative_to(PROJECT).with_suffix('').parts).removesuffix('.__init__'): path for path in files}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [name for alias in node.names for name in (f'{node.module}.{alias.name}', node.module)]
        else:
            continue
        yield from (name for name in names if name in known)


def circle(package: str) -> list[str]:
    """A chain of imports that ends where it began; empty if there is none."""
    known = modules(package)
    graph = {name: sorted(set(imported(path, known)) - {name, package}) for name, path in known.items()}
    done: set[str] = set()

    def follow(name: str, chain: list[str]) -> list[str]:
        if name in chain:
            return [*chain[chain.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (follow(other, [*chain, name]) for other in graph[name])), [])
        done.add(name)
        return found

    return next(filter(None, (follow(name, []) for name in graph)), [])


@pytest.mark.parametrize('package', ['backbones', 'dense/classify'])
def test_no_module_needs_itself(package: str) -> None:
    assert len(modules(package)) > 5
    assert circle(package) == []
