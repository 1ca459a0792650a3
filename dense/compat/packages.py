"""Looks up installed packages without ``pkg_resources`` and ``pkgutil.find_loader``.

setuptools 82 removed ``pkg_resources`` and Python 3.14 removed ``pkgutil.find_loader``; mmengine 0.10.7 needs both,
the first to resolve ``_base_ = 'mmdet::...'``. The forks published as ``onedl-*`` keep the import names but not the
distribution names, so a distribution that is not installed is looked up by the module that it would provide.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from mmengine.config import utils as config_utils
from mmengine.utils import package_utils
from mmengine.utils.dl_utils import misc

from .rebind import rebind

EXTRA_MODULES = {'mmcv-full': 'mmcv', 'mmcv-lite': 'mmcv', 'mmengine-lite': 'mmengine'}


def repair() -> None:
    """Make mmengine and mmcv find packages on every supported Python and setuptools. Idempotent."""
    rebind(package_utils, 'is_installed', is_installed)
    rebind(package_utils, 'get_installed_path', get_installed_path)
    rebind(package_utils, 'package2module', package2module)
    rebind(misc, 'mmcv_full_available', mmcv_full_available)
    if _find_spec('mmcv') is not None:
        from mmcv.utils import ext_loader

        rebind(ext_loader, 'check_ops_exist', mmcv_full_available)


def is_installed(package: str) -> bool:
    """Return whether a distribution or a module of this name is installed.

    Args:
        package: A distribution (``mmsegmentation``) or a module (``mmseg``). A distribution counts as installed
            when a fork provides its module.
    """
    if _distribution(package) is not None:
        return True
    spec = _find_spec(_module_of(package))
    return spec is not None and spec.origin is not None


def get_installed_path(package: str) -> str:
    """Return the folder of the package that a distribution or module name stands for.

    Args:
        package: As in :func:`is_installed`.

    Raises:
        importlib.metadata.PackageNotFoundError: Nothing of this name is installed.
        RuntimeError: The name is that of a namespace package, which has no single folder.
    """
    module = package if _find_spec(package) else package2module(package)
    spec = _find_spec(module)
    if spec is None:
        raise importlib.metadata.PackageNotFoundError(package)
    if spec.origin is None:
        raise RuntimeError(f'{package} is a namespace package: it has no single folder; name a package inside it')
    return str(Path(spec.origin).parent)


def package2module(package: str) -> str:
    """Return the name of the first top-level module that a distribution provides.

    Args:
        package: Name of a distribution, or of one whose module a fork provides.

    Raises:
        importlib.metadata.PackageNotFoundError: It is not installed.
        ValueError: It is installed but provides no module.
    """
    known = _module_of(package)
    if _find_spec(known) is not None:
        return known
    distribution = importlib.metadata.distribution(package)
    modules = _top_level(distribution)
    if not modules:
        raise ValueError(f'the distribution {package} provides no module')
    return modules[0]


def mmcv_full_available() -> bool:
    """Return whether ``mmcv._ext`` can be imported: a compiled one, or the one that :mod:`dense.compat` serves."""
    return _find_spec('mmcv') is not None and _find_spec('mmcv._ext') is not None


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_spec(module: str) -> ModuleSpec | None:
    # `find_spec` refuses a loaded module whose `__spec__` is None (a script, a hand-made stub) with a ValueError.
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, '__spec__', None) is None:
        return None
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent of a dotted name
        return None


def _module_of(package: str) -> str:
    by_package = {name: module for module, name in config_utils.MODULE2PACKAGE.items()}
    return {**by_package, **EXTRA_MODULES}.get(package, package)


def _top_level(distribution: importlib.metadata.Distribution) -> Sequence[str]:
    listed = (distribution.read_text('top_level.txt') or '').split()
    if not listed:
        files = distribution.files or []
        listed = sorted({file.parts[0] for file in files if file.name == '__init__.py' and len(file.parts) == 2})
    return sorted(listed, key=lambda name: name.startswith('_'))  # PyYAML: `yaml` before `_yaml`
