"""Makes mmengine, mmcv-lite, MMDetection and MMSegmentation work on the installed Python and PyTorch.

:func:`install` serves mmcv's compiled operators (:mod:`~dense.compat.extension`) and repairs mmengine's package
look-up (:mod:`~dense.compat.packages`) and checkpoint reading (:mod:`~dense.compat.checkpoints`).
:func:`check_environment` reports what is installed and what is wrong with it.
"""

import importlib.util
import warnings

from . import extension
from .environment import EnvironmentReport, Problem, broken_stubs, check_environment
from .supported import install_command

__all__ = ['EnvironmentReport', 'Problem', 'check_environment', 'install']


def install() -> None:
    """Serve the operators and repair mmengine; a second call changes nothing.

    It warns if mmdet or mmseg were imported earlier and keep operators that could not be imported then.

    Raises:
        UserError: mmengine is not installed.
    """
    if importlib.util.find_spec('mmengine') is None:
        from dense.errors import UserError

        raise UserError('mmengine is not installed, and everything here depends on it', install_command('mmengine'))
    extension.install()
    # These import mmengine, and with it torch, so the check comes first.
    from . import checkpoints, packages

    packages.repair()
    checkpoints.repair()
    for problem in broken_stubs():
        warnings.warn(f'{problem.cause}\n{problem.remedy}', stacklevel=2)
