"""Layers that the networks of several papers share.

Shapes: N batch, C channels, H and W height and width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Names used in OpenMMLab configs. MMEngine itself registers none of them, and mmcv need not be installed.
_NORMS: dict[str, Callable[..., nn.Module]] = {
    'BN': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'LN': LayerNorm2d,
    'GN': lambda num_channels, **options: nn.GroupNorm(num_channels=num_channels, **options),
}
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def build_norm(norm_cfg: Mapping[str, Any], num_channels: int) -> nn.Module:
    """Build a normalisation layer for ``(N, C, H, W)`` maps.

    Args:
        norm_cfg: ``type`` is ``BN``, ``SyncBN``, ``LN`` (over the channels of each position), ``GN``, or a name in
            MMEngine's ``MODELS``; ``requires_grad=False`` freezes its weights; the rest goes to the layer.
        num_channels: C.

    Raises:
        ValueError: ``type`` is missing or unknown.
    """
    options = dict(norm_cfg)
    name = options.pop('type', None)
    requires_grad = options.pop('requires_grad', True)
    layer = _NORMS.get(name) or (MODELS.get(name) if isinstance(name, str) else name)
    if layer is None:
        raise ValueError(
            f'Unknown norm type {name!r}; allowed: {", ".join(_NORMS)} and the norms in the MODELS registry.\n'
            "Name one, for example norm_cfg=dict(type='BN')."
        )
    norm = layer(num_channels, **options)
    for parameter in norm.parameters():
        parameter.requires_grad_(requires_grad)
    return norm


def init_layer(module: nn.Module) -> None:
    """Initialise a convolution or linear layer as all three papers do, and leave other modules unchanged.

    Weights are drawn from a truncated normal distribution with standard deviation 0.02; biases are 0. Meta tensors are
    skipped: they hold no values, yet drawing them would take ten times as long as building the network.
    """
    if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Stage(nn.Module):
    """One resolution of a hierarchical network: an optional downsampling layer, then blocks.

    Args:
        downsample: ``(N, C_in, H, W) -> (N, C, H / 2, W / 2)``, or ``nn.Identity()``.
        blocks: Each keeps the shape ``(N, C, H, W)``.

    Attributes:
        with_cp: Recompute the blocks in the backward pass instead of storing their activations.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, C, H', W')``, H' and W' halved (rounded down) if the stage downsamples."""
        x = self.downsample(x)
        if not (self.with_cp and torch.is_grad_enabled()):
            return self.blocks(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, context_fn=_recompute_contexts(block))
        return x


def _recompute_contexts(module: nn.Module) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    return lambda: (nullcontext(), _running_statistics_kept(module))


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    # The recomputation runs the same batch again; without this, batch norms would count it twice.
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.training and m.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, num_batches_tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def keep_statistics_in_recomputation(module: nn.Module, is_recomputation: Callable[[], bool]) -> None:
    """Make batch norms count each batch only once in a network with its own activation checkpointing.

    Args:
        module: Changed in place.
        is_recomputation: Returns, while a norm runs, whether the backward pass is recomputing it.
    """
    for norm in module.modules():
        if isinstance(norm, BATCH_NORMS) and norm.track_running_stats:
            guard = _StatisticsGuard(is_recomputation)
            norm.register_forward_pre_hook(guard.before)
            norm.register_forward_hook(guard.after, always_call=True)  # a recomputation ends with an exception


class _StatisticsGuard:
    """Hooks around one batch norm that keep its statistics while it is recomputed."""

    def __init__(self, is_recomputation: Callable[[], bool]) -> None:
        self._is_recomputation = is_recomputation
        self._kept: list[AbstractContextManager] = []

    def before(self, norm: nn.Module, args: Any) -> None:
        if self._is_recomputation():
            context = _running_statistics_kept(norm)
            context.__enter__()
            self._kept.append(context)

    def after(self, norm: nn.Module, args: Any, output: Any) -> None:
        while self._kept:
            self._kept.pop().__exit__(None, None, None)
