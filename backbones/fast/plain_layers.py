"""Checks that a layer computes exactly what its class defines.

Code that does not call layers one by one must not skip anything attached to them: a hook, an adapter, a
parametrization, a subclass.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a module's class is exactly one of ``kinds`` and nothing is attached to it.

    Args:
        module: Any module.
        *kinds: Classes; any class if none is given.
    """
    return (not kinds or type(module) in kinds) and not _has_more(module)


def _has_more(module: nn.Module) -> bool:
    return (
        any(getattr(module, kind) for kind in _HOOKS)
        or any(getattr(nn.modules.module, f'_global{kind}') for kind in _HOOKS)  # of profilers and FLOP counters
        or 'forward' in vars(module)  # a method replaced on this object only
        or parametrize.is_parametrized(module)
    )


def has_forward_of(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a module, maybe of a subclass, computes what one of ``kinds`` does.

    Args:
        module: Any module.
        *kinds: Classes.
    """
    return (
        any(type(module).forward is kind.forward for kind in kinds)
        and type(module).__call__ is nn.Module.__call__
        and 'forward' not in vars(module)
    )


def is_constant_batch_norm(module: nn.Module) -> bool:
    """Return whether a module in evaluation mode is a plain batch norm with fixed statistics: a factor and an offset.

    Subclasses may differ in what they accept, such as MMEngine's, but not in what they compute: some apply an
    activation, too.

    Args:
        module: Any module.
    """
    return (
        isinstance(module, _BatchNorm)
        and has_forward_of(module, _BatchNorm, nn.SyncBatchNorm)
        and is_plain(module)
        and module.running_mean is not None
    )


def is_plain_mlp(mlp: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether an MLP computes ``fc2(act(fc1(x)))`` with plain linear layers or 1 x 1 convolutions.

    Args:
        mlp: Any module.
        kind: A class with ``fc1``, ``act`` and ``fc2``; its other parts must do nothing.
    """
    if not is_plain(mlp, kind) or not all(is_linear(layer) for layer in (mlp.fc1, mlp.fc2)):
        return False
    return all(_does_nothing(part) for name, part in mlp.named_children() if name not in ('fc1', 'act', 'fc2'))


def is_linear(layer: nn.Module) -> bool:
    """Return whether a module is a plain linear layer, or a convolution that acts as one at each position."""
    if is_plain(layer, nn.Conv2d):
        return layer.kernel_size == layer.stride == (1, 1) and layer.padding in ((0, 0), 'same') and layer.groups == 1
    return is_plain(layer, nn.Linear)


def _does_nothing(part: nn.Module) -> bool:
    is_off = isinstance(part, nn.Dropout) and (part.p == 0 or not part.training)
    return is_plain(part, nn.Identity, nn.Dropout) and (is_off or isinstance(part, nn.Identity))
