"""Makes mmengine, mmcv-lite, MMDetection and MMSegmentation work on the installed Python and PyTorch.

:func:`install` serves mmcv's compiled operators (:mod:`~dense.compat.extension`) and repairs mmengine's package
look-up (:mod:`~dense.compat.packages`) and checkpoint reading (:mod:`~dense.compat.checkpoints`).
:func:`check_environment` tells what is installed and what is wrong with it.
"""

import importlib.util
import warnings

from . import extension
from .environment import EnvironmentReport, Problem, broken_stubs, check_environment
from .supported import install_command

__all__ = ['EnvironmentReport', 'Problem', 'check_environment', 'install']


def install() -> None:
    """Serve the operators and repair mmengine; a second call changes nothing.

    It warns when mmdet or mmseg were imported before and hold on to operators that could not be imported then.

    Raises:
        UserError: mmengine is not installed.
    """
    if importlib.util.find_spec('mmengine') is None:
        from dense.errors import UserError

        raise UserError('mmengine is not installed, and everything here stands on it', install_command('mmengine'))
    extension.install()
    # These import mmengine, and with it torch: not before it is known to be there.
    from . import checkpoints, packages

    packages.repair()
    checkpoints.repair()
    for problem in broken_stubs():
        warnings.warn(f'{problem.cause}\n{problem.remedy}', stacklevel=2)
