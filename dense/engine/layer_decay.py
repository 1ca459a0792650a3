"""Learning rates that fall towards the input: the deeper a pretrained layer, the more of the full rate it gets.

ConvNeXt's fine-tuning recipe (https://github.com/facebookresearch/ConvNeXt) for every backbone that says how deep its
parameters are. MMDetection's and MMSegmentation's own constructors know ConvNeXt's module names only.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

import backbones
from dense.errors import UserError, did_you_mean

DECAY_TYPES = ('layer_wise', 'stage_wise')
KEYS = ('decay_rate', 'decay_type', 'num_layers')
PREFIX = 'backbone.'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give a parameter of layer ``k`` of ``num_layers`` the learning rate ``lr * decay_rate ** (num_layers + 1 - k)``.

    The stem is layer 0; output norms, neck and heads are layer ``num_layers + 1`` and get the full rate. Between them

    - ``layer_wise``: the d-th of D blocks is in layer ``ceil(d * num_layers / D)``, and a downsampling in the layer of
      the next block. With ``num_layers = D / 3`` these are the groups of three blocks that ConvNeXt was published with.
    - ``stage_wise``: the blocks of stage i, counted from 0, are in layer ``i + 1``, all downsamplings in layer 0.

    One-dimensional parameters (norms, layer scale) and all biases get no weight decay. Frozen parameters are left out.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; ``optimizer.lr`` is needed.
        paramwise_cfg: ``decay_rate`` in (0, 1], ``decay_type`` (``'layer_wise'`` by default), ``num_layers`` (a third
            of the number of blocks, rounded up, by default; at least the number of stages if ``stage_wise``).

    Raises:
        UserError: A key is unknown or missing, or a value is out of its range.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, dict(paramwise_cfg or {}))
        _check(self.paramwise_cfg)
        if self.base_lr is None:
            raise UserError('layer decay needs a learning rate to start from', 'set optim_wrapper.optimizer.lr')

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None
    ) -> None:
        """Append the parameter groups of a model, one for each layer and weight decay.

        Args:
            params: The groups so far; changed in place.
            module: A model whose ``backbone`` says how deep its parameters are.
            prefix: Unused; the whole model is handled at once.
            is_dcn_module: Unused.

        Raises:
            UserError: The backbone does not say so, or it has more stages than there are layers.
        """
        layer_of, num_layers = self._read_depths(module)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = layer_of(name)
            is_spared = parameter.ndim <= 1 or name.endswith('.bias')
            if (layer, is_spared) not in groups:
                factor = self.paramwise_cfg['decay_rate'] ** (num_layers + 1 - layer)
                groups[layer, is_spared] = dict(params=[], lr=self.base_lr * factor)
                if is_spared:
                    groups[layer, is_spared]['weight_decay'] = 0.0
            groups[layer, is_spared]['params'].append(parameter)
        # The heads come first: the log shows the rate of the first group, and theirs is that of the config.
        for (layer, is_spared), group in sorted(groups.items(), key=lambda item: item[0], reverse=True):
            decay = 'without weight decay' if is_spared else 'with weight decay'
            print_log(f'layer {layer}: {len(group["params"])} tensors at {group["lr"]:.3g} {decay}', logger='current')
            params.append(group)

    def _read_depths(self, model: nn.Module) -> tuple[Callable[[str], int], int]:
        """Return the function from a parameter's name to its layer, and the number of layers."""
        backbone = _backbone_of(model)
        name, _ = next(backbone.named_parameters())
        num_blocks = backbone.get_layer_depth(name)[1] - 2
        is_stage_wise = self.paramwise_cfg.get('decay_type') == 'stage_wise'
        least = backbone.get_stage_depth(name)[1] - 2 if is_stage_wise else 1
        num_layers = self.paramwise_cfg.get('num_layers') or max(math.ceil(num_blocks / 3), least)
        if num_layers < least:
            raise UserError(
                f'num_layers={num_layers} is less than the {least} stages of {type(backbone).__name__}',
                f'set optim_wrapper.paramwise_cfg.num_layers to {least} or more, or leave it out',
            )

        def layer_of(name: str) -> int:
            if not name.startswith(PREFIX):
                return num_layers + 1
            if is_stage_wise:
                depth, num_depths = backbone.get_stage_depth(name, PREFIX)
                return num_layers + 1 if depth == num_depths - 1 else depth
            depth, num_depths = backbone.get_layer_depth(name, PREFIX)
            return num_layers + 1 if depth == num_depths - 1 else math.ceil(depth * num_layers / num_blocks)

        return layer_of, num_layers


def _backbone_of(model: nn.Module) -> nn.Module:
    backbone = getattr(model, 'backbone', None)
    if hasattr(backbone, 'get_layer_depth') and hasattr(backbone, 'get_stage_depth'):
        return backbone
    known = [name for name in backbones.__all__ if hasattr(getattr(backbones, name), 'get_layer_depth')]
    raise UserError(
        f'layer decay needs a backbone that says how deep its parameters are; {type(backbone).__name__} does not',
        f'use one of {", ".join(sorted(known))}, or remove optim_wrapper.constructor and optim_wrapper.paramwise_cfg',
    )


def _check(cfg: Mapping[str, Any]) -> None:
    place = 'optim_wrapper.paramwise_cfg'
    for key in cfg:
        if key not in KEYS:
            raise UserError(f'unknown config key {place}.{key}', did_you_mean(key, KEYS))
    rate = cfg.get('decay_rate')
    if not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise UserError(
            f'{place}.decay_rate is {rate!r}, allowed is above 0, up to 1', 'set it, for example to 0.95; 1 disables it'
        )
    kind = cfg.get('decay_type', 'layer_wise')
    if kind not in DECAY_TYPES:
        raise UserError(f'unknown {place}.decay_type {kind!r}', did_you_mean(str(kind), DECAY_TYPES))
    layers = cfg.get('num_layers')
    if layers is not None and (not isinstance(layers, int) or isinstance(layers, bool) or layers < 1):
        raise UserError(
            f'{place}.num_layers is {layers!r}, allowed is a whole number of at least 1',
            'set it, or leave it out for a third of the number of blocks',
        )
