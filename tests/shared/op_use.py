"""Finds in their sources which mmcv ops detectors and segmentors use, and the compiled functions behind these."""

import ast
import re
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Place = tuple[str, str]  # module of mmcv.ops and a name in it


def root_of(package: str) -> Path:
    """Return the folder of an installed package."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of others' escape sequences
        return ast.parse(text)


def op_tree(module: str) -> ast.Module:
    """Parse a module of ``mmcv.ops``."""
    return parsed((root_of('mmcv') / 'ops' / f'{module}.py').read_text(encoding='utf-8'))


def op_modules() -> list[str]:
    return sorted(path.stem for path in (root_of('mmcv') / 'ops').glob('*.py') if path.stem != '__init__')


@cache
def used_ops(package: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return which ops a package's modules import, and which its configs and defaults name as ``type``.

    Imported are names from ``mmcv.ops`` and its modules, and attributes of ``ops``. A type is a name in ``mmcv.ops``
    or one under which an op is registered.
    """
    registered = registered_ops()
    known = {name: name for name in exported_ops()} | registered
    imported, types = set(), set()
    for path in sorted(root_of(package).rglob('*.py')):  # the configs, in a hidden folder, included
        text = path.read_text(encoding='utf-8')
        if 'mmcv' in text and 'ops' in text:
            imported |= imports_of(parsed(text))
        types |= set(re.findall(r'\btype\s*=\s*[\'"](\w+)[\'"]', text)) & known.keys()
    return frozenset(imported), frozenset(known[name] for name in types)


def imports_of(tree: ast.Module) -> set[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    from_ops = [node for node in imports if ((node.module or '') + '.').startswith('mmcv.ops.')]
    names = {alias.name for node in from_ops for alias in node.names}
    if any(node.module == 'mmcv' and 'ops' in [alias.name for alias in node.names] for node in imports):
        names |= attributes_of(tree, 'ops')
    return names


def attributes_of(tree: ast.AST, name: str) -> set[str]:
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == name}


@cache
def exported_ops() -> dict[str, Place]:
    """Return where each name of ``mmcv.ops`` is defined."""
    places = {}
    for node in op_tree('__init__').body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            places |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return places


@cache
def registered_ops() -> dict[str, str]:
    """Return the class of each name under which an op is registered for configs."""
    classes = {}
    for module in op_modules():
        for node in op_tree(module).body:  # not those under a condition, which are for other devices
            for call in node.decorator_list if isinstance(node, ast.ClassDef) else []:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == 'name')]
                    classes |= {value.value: node.name for value in given if isinstance(value, ast.Constant)}
    return classes


@cache
def module_names(module: str) -> tuple[dict[str, ast.stmt], dict[str, Place]]:
    """Return what a module of ``mmcv.ops`` defines at its top level, and what it imports from the others."""
    defined: dict[str, ast.stmt] = {}
    taken: dict[str, Place] = {}
    for node in op_tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            other = node.module.removeprefix('mmcv.ops.')
            if node.level == 1 or other != node.module:
                taken |= {alias.asname or alias.name: (other, alias.name) for alias in node.names}
    return defined, taken


def compiled_functions(op: str, replaced: Iterable[Place] = ()) -> set[str]:
    """Return the functions of ``mmcv._ext`` that an op reaches, other than through replaced names."""
    todo, seen, found = [place_of(op)], set(replaced), set()
    while todo:
        place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        defined, taken = module_names(place[0])
        node = defined[place[1]]
        found |= attributes_of(node, 'ext_module')
        names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} - {'ext_module'}
        todo += [(place[0], name) for name in names & defined.keys()] + [taken[name] for name in names & taken.keys()]
    return found


def place_of(op: str) -> Place:
    """Return where an op is defined; also of one that is imported from its module but not exported."""
    if op in exported_ops():
        return exported_ops()[op]
    return next((module, op) for module in op_modules() if op in module_names(module)[0])
