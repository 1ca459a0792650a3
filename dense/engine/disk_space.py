"""Looks before the first step whether the disk has room for a run's checkpoints; keeps a full disk from ending it."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.visualization import LocalVisBackend
from torch import Tensor, optim

from dense.console.output import notice
from dense.errors import UserError

# Numbers that an optimizer keeps for each parameter: as many as Adam's unless it is known to keep fewer.
MOMENTS = 2
UNIT = 1 << 20


def check_space(runner: Any, hook: Any) -> None:
    """Compare the free space with what the run will keep.

    Args:
        runner: The runner, with its model and optimizers.
        hook: Its checkpoint hook.

    Raises:
        UserError: Not even one checkpoint has room. Too little room for all is only a notice.
    """
    size, count = checkpoint_bytes(runner), kept_files(runner, hook)
    free = shutil.disk_usage(hook.out_dir if Path(hook.out_dir).is_dir() else runner.work_dir).free
    what = f'{free // UNIT} MiB are free in {hook.out_dir}, and a checkpoint takes about {size // UNIT + 1} MiB'
    if free < size:
        raise UserError(what, 'free some space, or choose another folder with --work-dir')
    there = len(list(Path(hook.out_dir).glob('*.pth'))) if runner._resume else 0
    if free < size * (count - there):
        notice(
            f'WARNING: {what}; the run keeps {count} (with the one being written). Free some space, or keep fewer '
            'with --cfg-options default_hooks.checkpoint.max_keep_ckpts=N'
        )


def kept_files(runner: Any, hook: Any) -> int:
    """Return how many checkpoints the run has at most at the same time, with the one that is being written.

    Args:
        runner: The runner.
        hook: Its checkpoint hook.
    """
    length = runner.max_epochs if hook.by_epoch else runner.max_iters
    regular = -(-length // hook.interval) if hook.interval > 0 else int(hook.save_last)
    if hook.max_keep_ckpts > 0:
        regular = min(regular, hook.max_keep_ckpts)
    return regular + len(hook.save_best or ()) + 1


def checkpoint_bytes(runner: Any) -> int:
    """Return the size of a checkpoint: weights, averaged weights, and what the optimizers keep.

    Args:
        runner: The runner.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    weights = _bytes(model.state_dict().values())
    averages = weights * sum(isinstance(hook, EMAHook) for hook in runner.hooks)
    wrapper = runner.optim_wrapper
    wrappers = list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return weights + averages + sum(_moments(one) for one in wrappers)


def _moments(wrapper: OptimWrapper) -> int:
    optimizer = wrapper.optimizer
    number = MOMENTS
    if isinstance(optimizer, optim.SGD):
        number = int(any(group['momentum'] for group in optimizer.param_groups))
    return number * _bytes(tensor for group in optimizer.param_groups for tensor in group['params'])


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def lose_rows(visualizer: Any) -> None:
    """Let a visualizer lose the logged numbers that the disk does not take, rather than end the run.

    Args:
        visualizer: Of a run; changed in place.
    """
    for backend in getattr(visualizer, '_vis_backends', {}).values():
        if isinstance(backend, LocalVisBackend):
            backend._dump = functools.partial(_dump, backend._dump)


def _dump(dump: Callable[..., None], row: dict[str, Any], path: str, *args: Any) -> None:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    try:
        dump(row, path, *args)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # half a line would spoil the next one, too
