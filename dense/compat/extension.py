"""Serves ``mmcv._ext``, the compiled half of mmcv, if no compiled one is installed.

``mmcv.ops`` asks its extension module for every function while it is imported, so with mmcv-lite, which ships no
extension, it cannot be imported at all. :func:`install` adds two import finders:

- one at the end, which offers a ``mmcv._ext`` made of the functions in :mod:`dense.compat.ops`. It is asked only when
  nothing else has the module, so a real compiled extension always wins;
- one at the beginning, which handles only the modules of :data:`REPAIRS` and lets the ordinary machinery find them.
  After the import of ``mmcv.ops`` it replaces mmcv's entry points with differentiable PyTorch functions, before any
  detector binds their names. These support autocast, ``torch.compile`` and deterministic algorithms, which a
  hand-written backward pass does not.

Functions that are not served exist too, because mmcv asks for them; they raise ``NotImplementedError`` when called.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

EXTENSION = 'mmcv._ext'
# Modules whose contents are repaired right after their import, and the function of dense.compat.ops that does it.
REPAIRS = {
    'mmcv.ops': 'replace',
    'mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor': 'keep_exact_regions',
}


def unserved(name: str) -> Callable[..., NoReturn]:
    """Return a stand-in for a compiled function that this package does not serve.

    Args:
        name: Name of the function in ``mmcv._ext``.
    """

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        import torch

        raise NotImplementedError(
            f"mmcv's compiled function {name!r} is not among those that dense serves with PyTorch and torchvision.\n"
            f'Install the full mmcv built for torch {torch.__version__} instead of mmcv-lite '
            '(`pip uninstall mmcv-lite`, then `pip install mmcv`, which compiles), or choose a model without this op.'
        )

    refuse.__name__ = refuse.__qualname__ = name
    return refuse


class _ExtensionLoader(Loader):
    """Fills the ``mmcv._ext`` that replaces the compiled one."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None  # an ordinary module

    def exec_module(self, module: ModuleType) -> None:
        from dense.compat.ops import KERNELS

        def stand_in(name: str) -> Callable[..., NoReturn]:
            # The import system and inspect probe for private names, which a compiled module would not have either.
            if name.startswith('_'):
                raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')
            return unserved(name)

        module.__doc__ = "The functions of mmcv's compiled extension, served by PyTorch and torchvision."
        vars(module).update(KERNELS)
        vars(module)['__getattr__'] = stand_in


class _ExtensionFinder(MetaPathFinder):
    """Offers ``mmcv._ext`` when no file provides it. Comes last in ``sys.meta_path``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        # A finder added after this one may still know a compiled module, so search the files once more.
        compiled = PathFinder.find_spec(fullname, path)
        return compiled or ModuleSpec(EXTENSION, _ExtensionLoader(), origin='dense.compat.ops')


class _RepairFinder(MetaPathFinder):
    """Lets the ordinary machinery import a module of :data:`REPAIRS`, then repairs it. Comes first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REPAIRS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_repair(module: ModuleType) -> None:
            execute(module)
            repair(module)

        # Set on the instance: the loader keeps its type, and everything else that reads the source still works.
        loader.exec_module = execute_and_repair
        return spec


def repair(module: ModuleType) -> None:
    """Repair a module of :data:`REPAIRS`; does nothing when ``mmcv._ext`` is a compiled one.

    Args:
        module: The imported module.
    """
    if origin() == 'torchvision':
        getattr(importlib.import_module('dense.compat.ops'), REPAIRS[module.__name__])(module)


def install() -> None:
    """Make ``import mmcv.ops`` work without a compiler; a second call changes nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ExtensionFinder())
    if not any(isinstance(finder, _RepairFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RepairFinder())


def origin() -> str:
    """Tell where the functions of ``mmcv._ext`` come from, without importing mmcv.

    Returns:
        ``'compiled'`` when mmcv has a compiled extension, else ``'torchvision'``.
    """
    module = sys.modules.get(EXTENSION)
    if module is not None:
        spec = getattr(module, '__spec__', None)
        return 'torchvision' if isinstance(getattr(spec, 'loader', None), _ExtensionLoader) else 'compiled'
    package = importlib.util.find_spec('mmcv')
    if package is None or package.submodule_search_locations is None:
        return 'torchvision'
    compiled = PathFinder.find_spec(EXTENSION, list(package.submodule_search_locations))
    return 'torchvision' if compiled is None else 'compiled'


def served_ops() -> dict[str, str]:
    """Return what serves each op of mmcv.

    Returns:
        Name of the op in ``mmcv.ops`` to what computes it, for example ``{'nms': 'torchvision.ops.nms', ...}``.
    """
    from dense.compat.ops import SERVED

    return dict(SERVED)
