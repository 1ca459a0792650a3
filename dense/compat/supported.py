"""Lists the supported packages and versions, and the commands that install them.

The OpenMMLab packages keep their bounds in pyproject.toml as well, because pip installs them from there; a test
compares the two.
"""

import sys
from pathlib import Path

from dense.project import IS_CLONE, PROJECT

# Distribution to (first supported version, first unsupported one).
BOUNDS: dict[str, tuple[str, str | None]] = {
    'torch': ('2.6', None),
    'torchvision': ('0.21', None),
    'timm': ('1.0.15', None),
    'numpy': ('1.26', None),
    'opencv-python-headless': ('4.9', None),
    'mmengine': ('0.10.7', '0.11'),
    'mmengine-lite': ('0.10.7', '0.11'),
    'mmcv-lite': ('2.1.0', '2.2'),
    'mmcv': ('2.1.0', '2.2'),
    'mmdet': ('3.3.0', '3.4'),
    'mmsegmentation': ('1.2.2', '1.3'),
    'onedl-mmengine': ('0.10.12', '0.10.13'),
    'onedl-mmcv': ('2.3.6', '2.3.7'),
    'onedl-mmdetection': ('3.5.1', '3.5.2'),
    'onedl-mmsegmentation': ('1.4.2', '1.4.3'),
}
OLDEST_PYTHON = (3, 10)
DISTRIBUTION = 'inceptionnext-dense'

# Module to the distribution that provides it by default, upstream and in the onedl family.
MODULES: dict[str, tuple[str, str]] = {
    'torch': ('torch', 'torch'),
    'torchvision': ('torchvision', 'torchvision'),
    'timm': ('timm', 'timm'),
    'numpy': ('numpy', 'numpy'),
    'cv2': ('opencv-python-headless', 'opencv-python-headless'),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
WITHOUT_DEPENDENCIES = ('cv2', 'mmengine', 'mmcv', 'mmdet', 'mmseg')


def install_command(module: str, family: str = 'openmmlab') -> str:
    """Return the command that installs what provides ``module``, to be run in the clone's folder if there is one.

    Args:
        module: A name of :data:`MODULES`.
        family: ``'openmmlab'`` or ``'onedl'``.
    """
    if not IS_CLONE:
        return _install_beside_wheel(module, family)
    if module in WITHOUT_DEPENDENCIES:
        group = 'openmmlab' if module == 'cv2' else family
        return f'{python_pip()} install -c constraints.txt --no-deps --group {group}'
    return f'{python_pip()} install -c constraints.txt -e .'


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of this project, to be run as :func:`install_command` says."""
    return f'{python_pip()} install ' + (
        f"-c constraints.txt -e '.[{extra}]'" if IS_CLONE else f"'{DISTRIBUTION}[{extra}]'"
    )


def _install_beside_wheel(module: str, family: str) -> str:
    name = MODULES[module][family == 'onedl']
    low, high = BOUNDS[name]
    if name.startswith('onedl-'):
        return f'{python_pip()} install --no-deps {name}=={low}'
    if module == 'mmcv':  # its metadata asks for a build of OpenCV that needs libGL
        return f"{python_pip()} install --no-deps '{name}>={low},<{high}'"
    return install_extra('openmmlab') if module in WITHOUT_DEPENDENCIES else f'{python_pip()} install {DISTRIBUTION}'


def python_pip() -> str:
    """Return how to call this Python's pip, from the folder of the clone if there is one."""
    python = Path(sys.executable)
    inside = python.is_relative_to(PROJECT)
    return f'{python.relative_to(PROJECT) if inside else python} -m pip'
