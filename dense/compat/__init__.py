"""Makes mmengine, mmcv-lite, MMDetection and MMSegmentation work on the installed Python and PyTorch.

:func:`install` serves mmcv's compiled operators (:mod:`~dense.compat.extension`) and repairs mmengine's package
look-up (:mod:`~dense.compat.packages`) and checkpoint reading (:mod:`~dense.compat.checkpoints`).
:func:`check_environment` tells what is installed and what is wrong with it.
"""

import importlib.util

from . import extension
from .environment import EnvironmentReport, Problem, check_environment, install_command

__all__ = ['EnvironmentReport', 'Problem', 'check_environment', 'install']


def install() -> None:
    """Serve the operators and repair mmengine; a second call changes nothing.

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
