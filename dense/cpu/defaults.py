"""Settings that the tools choose to compute faster on a CPU, where measurements showed a gain, and how to undo each.

| choice | instead of | turned off by |
|---|---|---|
| lean MLP of a backbone that has one (:mod:`backbones.fast.lean_mlp`) | hidden maps that are held | ``--cfg-options model.backbone.lean_mlp=False`` |
| 3 x 3 convolutions by Winograd's algorithm (:mod:`backbones.fast.winograd`), in testing too | sums over the window | ``--cfg-options winograd=False`` |
| one pass of AdamW over all parameters | a loop with ten operations each | ``--cfg-options optim_wrapper.optimizer.fused=False`` |
| freed memory is kept (:mod:`dense.cpu.allocator`) | memory mapped again in every layer | ``DENSE_KEEP_MEMORY=0`` in the environment |
| waiting threads sleep (``tools/_common.py``) | threads that spin | ``OMP_WAIT_POLICY=active`` in the environment |

Values that a config sets itself are kept. The names of parameters and the contents of checkpoints stay the same.
Maps stay in PyTorch's usual memory format: channels last was not faster in training on a CPU.
"""  # noqa: E501

import functools
import inspect
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from backbones.base import DenseBackbone, StagedBackbone
from backbones.fast.winograd import use_winograd
from backbones.layers import Stage
from dense.cpu.device import run_device
from dense.errors import UserError

_FUSED = ('AdamW',)  # optimizers of PyTorch whose fused form was measured


def set_cpu_defaults(cfg: Config) -> None:
    """Fill in what the config leaves open, in place; do nothing if the run does not use the CPU.

    Args:
        cfg: Config of a training run.
    """
    if run_device() != 'cpu':
        return
    backbone = (cfg.get('model') or {}).get('backbone')
    if backbone and 'lean_mlp' in _arguments(backbone.get('type')):
        backbone.setdefault('lean_mlp', True)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if optimizer and optimizer.get('type') in _FUSED and not optimizer.get('foreach'):
        optimizer.setdefault('fused', True)


def apply_cpu_rewrites(model: nn.Module) -> None:
    """Rewrite a built model for training on a CPU, in place: lean MLPs and Winograd convolutions.

    Args:
        model: Any module. Its parameters and their names do not change.
    """
    for module in list(model.modules()):
        if isinstance(module, StagedBackbone) and 'lean_mlp' in _arguments(type(module)):
            module.use_lean_mlp()
    use_winograd(model)


def _arguments(named: Any) -> Any:
    layer = MODELS.get(named) if isinstance(named, str) else named
    return inspect.signature(layer).parameters if inspect.isclass(layer) else ()


def compile_backbones(model: nn.Module, options: dict[str, Any]) -> list[str]:
    """Compile the backbones of a model in place for training; no parameter is renamed.

    In evaluation mode they run as they are, so that a validation gives exactly what the test of its checkpoint gives:
    compiled code rounds otherwise.

    Args:
        model: Detector, segmentor or classifier, or its distributed wrapper.
        options: Arguments of ``torch.compile``.

    Returns:
        Their names.

    Raises:
        UserError: There is none, or one uses activation checkpointing, which cannot be compiled.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, DenseBackbone)}
    if not found:
        raise UserError(
            'there is nothing to compile: the model has no backbone of this project',
            'start without --compile (compile in the config), or wrap the backbone in TimmBackbone',
        )
    for name, module in found.items():
        if any(isinstance(part, Stage) and part.with_cp for part in module.modules()):
            raise UserError(
                f'{name} has activation checkpointing (with_cp), which cannot be compiled',
                'start without --compile, or with --cfg-options model.backbone.with_cp=False',
            )
    for module in found.values():
        module.compile(**options)
        module._compiled_call_impl = functools.partial(_call, module, module._compiled_call_impl)
    return list(found)


def _call(module: nn.Module, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return (compiled if module.training else module._call_impl)(*args, **kwargs)
