"""Collects what a checkpoint holds, as MMEngine's runner does, and copies it to the host's memory."""

import functools
import time
from collections import OrderedDict
from typing import Any

import mmengine
import torch
from mmengine.model import is_model_wrapper
from mmengine.utils import get_git_hash


def collect(runner: Any, *, optimizer: bool, schedulers: bool, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a run. Its tensors are the run's own, not copies.

    Args:
        runner: The runner.
        optimizer: Include the optimizer.
        schedulers: Include the schedulers of learning rates and momenta.
        meta: Entries of ``meta`` besides the usual ones.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    content = dict(
        meta={**meta, **_origin(runner)},
        state_dict=model.state_dict(),
        message_hub=runner.message_hub.state_dict(),
    )
    if optimizer:
        content['optimizer'] = runner.optim_wrapper.state_dict()
    if schedulers and runner.param_schedulers is not None:
        content['param_schedulers'] = _states(runner.param_schedulers)
    return content


def _origin(runner: Any) -> dict[str, Any]:
    dataset = runner.train_dataloader.dataset
    return dict(
        cfg=runner.cfg.pretty_text,
        seed=runner.seed,
        experiment_name=runner.experiment_name,
        time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
        saved=time.time(),  # the order of the files that a run saved, whatever becomes of their own times
        mmengine_version=mmengine.__version__ + _git_hash(),
        **(dict(dataset_meta=dataset.metainfo) if hasattr(dataset, 'metainfo') else {}),
    )


@functools.cache
def _git_hash() -> str:
    return get_git_hash()


def _states(schedulers: Any) -> Any:
    if isinstance(schedulers, dict):
        return {name: _states(group) for name, group in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]


def to_host(value: Any, *, copy: bool, seen: dict[Any, torch.Tensor] | None = None) -> Any:
    """Return a value whose tensors are in the host's memory.

    Args:
        value: Tensors in dicts, lists and tuples.
        copy: Copy tensors that are there already, so that nobody else changes them.
        seen: Tensors copied so far: what shares its memory before shares it afterwards, too.
    """
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else id(value)
        if key not in seen:
            seen[key] = value.detach().to('cpu', copy=copy)
        return seen[key]
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        copied: Any = kind((key, to_host(item, copy=copy, seen=seen)) for key, item in value.items())
        if hasattr(value, '_metadata'):  # versions of the modules in a state dict
            copied._metadata = value._metadata
        return copied
    if isinstance(value, list | tuple):
        items = [to_host(item, copy=copy, seen=seen) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value
