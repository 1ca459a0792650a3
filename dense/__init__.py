"""Everything that detection and segmentation need around a backbone.

Importing this package makes mmcv-lite, MMDetection and MMSegmentation run on the installed PyTorch without a
compiler (:mod:`dense.compat`) and registers the classes that configs name. Import it before ``mmdet`` or ``mmseg``.
"""

from dense import compat

compat.install()

# Registration needs mmengine repaired first; what needs mmdet or mmseg is imported by the configs that name it.
from dense.console import progress  # noqa: E402
from dense.data import loading, seeded  # noqa: E402
from dense.engine import (  # noqa: E402
    accumulation,
    checkpoint,
    data_wait_hook,
    due_validation,
    finite,
    global_batch,
    hooks,
    layer_decay,
    optim,
    part_state,
    run_record,
    runner,
    saving,
    stopping,
)

__all__ = [
    'accumulation',
    'checkpoint',
    'compat',
    'data_wait_hook',
    'due_validation',
    'finite',
    'global_batch',
    'hooks',
    'layer_decay',
    'loading',
    'optim',
    'part_state',
    'progress',
    'run_record',
    'runner',
    'saving',
    'seeded',
    'stopping',
]
