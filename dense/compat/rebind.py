"""Replace a function of another package everywhere that package has already imported it by name."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

FAMILY = ('mmengine', 'mmcv', 'mmdet', 'mmseg')


def rebind(home: ModuleType, name: str, replacement: Callable[..., Any]) -> None:
    """Replace ``home.name``, and every copy that ``from ... import name`` has made, with ``replacement``.

    Modules that are imported later take the replacement from ``home``. A second call changes nothing.

    Args:
        home: The module that defines the function.
        name: The function's name there.
        replacement: What is called instead; it keeps the signature.
    """
    original = getattr(home, name)
    if original is replacement:
        return
    setattr(home, name, replacement)
    for module in _loaded_family():
        if vars(module).get(name) is original:
            setattr(module, name, replacement)


def _loaded_family() -> list[ModuleType]:
    loaded = list(sys.modules.items())
    return [module for path, module in loaded if path.partition('.')[0] in FAMILY and isinstance(module, ModuleType)]
