"""Base classes of all backbones.

:class:`DenseBackbone` defines what every backbone guarantees. :class:`StagedBackbone` holds what the families with a
stem and stages have in common.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import Tensor, nn

from backbones.layers import BATCH_NORMS, Stage, build_norm
from backbones.weights import load_pretrained

ArchT = TypeVar('ArchT')


class DenseBackbone(BaseModule, ABC):
    """A hierarchical network that returns the feature maps of its stages.

    This class implements what all backbones share: output norms, freezing, initialisation, and which keys of a
    checkpoint count. A subclass builds the network, computes the maps (:meth:`forward_stages`) and knows the depth of
    each parameter.

    Args:
        parts: Name -> module: the network, up to the last stage in ``out_indices``. Later parts would have parameters
            without a gradient.
        dims: Channels of every stage of the architecture.
        strides: Input pixels per output pixel of every stage of the architecture.
        out_indices: Stages whose maps are returned, in ascending order; 0 is the first.
        out_norm: Norm on each returned map, for example ``dict(type='SyncBN')``; None returns raw stage outputs.
        frozen_stages: -1 trains everything, 0 freezes the stem, k freezes the stem and the first k stages: their
            parameters get no gradient and their batch statistics do not change.
        norm_eval: Keep every batch norm of the network (not of the outputs) in eval mode during training.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with a file, a URL, ``hf-hub:OWNER/NAME`` or the name of
            published weights (:data:`backbones.weights.WEIGHTS`).

    Raises:
        ValueError: ``frozen_stages`` or ``out_norm`` is invalid.
    """

    ARCHS: ClassVar[Mapping[str, Any]] = {}
    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        parts: Mapping[str, nn.Module],
        dims: Sequence[int],
        strides: Sequence[int],
        out_indices: tuple[int, ...],
        out_norm: Mapping[str, Any] | None,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(init_cfg=dict(init_cfg) if init_cfg else None)
        num_stages = out_indices[-1] + 1
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages}; allowed: -1 to {num_stages}.\n'
                'Give -1 to train everything, 0 to freeze the stem, k to freeze the stem and the first k stages.'
            )
        for name, part in parts.items():
            self.add_module(name, part)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._part_names = tuple(parts)
        self._out_channels = tuple(dims[i] for i in out_indices)
        self._out_strides = tuple(strides[i] for i in out_indices)
        self._has_out_norm = out_norm is not None
        if out_norm is not None:
            for i in out_indices:
                self.add_module(f'out_norm{i}', build_norm(out_norm, dims[i]))
        self._freeze()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels C_i of each returned map."""
        return self._out_channels

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Input pixels per pixel of each returned map."""
        return self._out_strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of ``out_indices``.

        Args:
            x: Images ``(N, in_channels, H, W)``. H and W are at least the largest stride, but need not be multiples of
                it.

        Returns:
            One map ``(N, C_i, H // stride_i, W // stride_i)`` for each of ``out_indices``.
        """
        outs = self.forward_stages(x)
        if not self._has_out_norm:
            return outs
        return tuple(self.get_submodule(f'out_norm{i}')(out) for i, out in zip(self.out_indices, outs, strict=True))

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """Switch between training and evaluation mode, but keep frozen parts in evaluation mode. Returns self."""
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for name in self._part_names:
                    for module in self.get_submodule(name).modules():
                        if isinstance(module, BATCH_NORMS):
                            module.eval()
        return self

    def init_weights(self) -> None:
        """Load the weights that ``init_cfg`` names; without one, keep the initialisation of the constructor.

        Raises:
            ValueError: ``init_cfg`` has another type or unknown fields, or the weights do not fit.
        """
        if not self.init_cfg:
            return
        unknown = set(self.init_cfg) - {'type', 'checkpoint', 'prefix'}
        if self.init_cfg.get('type') != 'Pretrained' or 'checkpoint' not in self.init_cfg or unknown:
            raise ValueError(
                f'{type(self).__name__} does not support init_cfg={self.init_cfg!r}.\n'
                "Give dict(type='Pretrained', checkpoint=FILE, URL or NAME[, prefix=...]) or None."
            )
        self.load_report = load_pretrained(self, self.init_cfg['checkpoint'], prefix=self.init_cfg.get('prefix'))
        print_log(str(self.load_report), logger='current')
        if hasattr(self, '_params_init_info'):  # set by the model that this backbone is part of
            update_init_info(self, init_info=str(self.load_report))
        self._is_init = True

    @abstractmethod
    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, in_channels, H, W)`` -> the raw map ``(N, C_i, H_i, W_i)`` for each of ``out_indices``."""

    @abstractmethod
    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return how deep a parameter is in the network, for layer-wise learning-rate decay.

        The stem has depth 0 and the k-th block of the whole network depth k. An output norm has the depth after the
        last block, like the heads.

        Args:
            param_name: Name of a parameter, as in ``named_parameters()`` of the model that holds the backbone.
            prefix: Prefix of the backbone's own names, for example ``'backbone.'``.

        Returns:
            The depth, and the number of depths: ``2 + number of blocks``.

        Raises:
            ValueError: The backbone has no such parameter.
        """

    @abstractmethod
    def get_stage_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the stage that a parameter belongs to, for stage-wise learning-rate decay.

        The stem has depth 0 and the blocks of stage i depth ``i + 1``. An output norm has the depth after the last
        stage, like the heads.

        Args:
            param_name: Name of a parameter, as in ``named_parameters()`` of the model that holds the backbone.
            prefix: Prefix of the backbone's own names, for example ``'backbone.'``.

        Returns:
            The depth, and the number of depths: ``2 + number of stages``.

        Raises:
            ValueError: The backbone has no such parameter.
        """

    @property
    @abstractmethod
    def input_layers(self) -> tuple[str, ...]:
        """Names of the layers that take the image."""

    @abstractmethod
    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under this backbone's names, without changing anything in place."""

    @abstractmethod
    def leaves_out(self, name: str) -> bool:
        """Tell whether a tensor of a converted checkpoint belongs to the network, but not to this backbone.

        That is true of the classifier, stages after the last in ``out_indices``, and norms of other outputs.
        """

    def named_weights(self, source: str) -> Mapping[str, Tensor] | None:
        """Fetch weights by a name that only this class knows; return None if ``source`` is no such name."""
        return None

    def _is_other_norm(self, name: str) -> bool:
        return name.startswith('out_norm') and not hasattr(self, name)

    def _freeze(self) -> None:
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)

    @abstractmethod
    def _frozen_modules(self) -> Iterable[nn.Module]:
        """Return the modules that are frozen, including everything in them."""

    def _frozen_parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for module in self._frozen_modules() for parameter in module.parameters())


class StagedBackbone(DenseBackbone):
    """A backbone with a stem and stages of blocks: the module tree that all families of this package share.

    Args:
        stem: ``(N, in_channels, H, W) -> (N, C_0, H / 4, W / 4)``; other strides are possible.
        stages: The stages up to the last in ``out_indices``.
        with_cp: Activation checkpointing: less memory for about a third more time.
        lean_mlp: See :meth:`use_lean_mlp`.
        dims, strides, out_indices, out_norm, frozen_stages, norm_eval, init_cfg: See :class:`DenseBackbone`.
    """

    stem: nn.Module
    stages: nn.ModuleList

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        strides: Sequence[int],
        out_indices: tuple[int, ...],
        out_norm: Mapping[str, Any] | None,
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: Mapping[str, Any] | None,
        lean_mlp: bool = False,
    ) -> None:
        super().__init__(
            parts=dict(stem=stem, stages=nn.ModuleList(stages)),
            dims=dims,
            strides=strides,
            out_indices=out_indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            init_cfg=init_cfg,
        )
        for stage in stages:
            stage.with_cp = with_cp
        if lean_mlp:
            self.use_lean_mlp()

    def use_lean_mlp(self, lean: bool = True) -> None:
        """Choose whether the MLPs recompute their hidden maps in the backward pass instead of storing them.

        Raises:
            ValueError: The family's blocks do not support it.
        """
        blocks = [block for stage in self.stages for block in stage.blocks]
        if not all(hasattr(block, 'lean_mlp') for block in blocks):
            raise ValueError(f'{type(self).__name__} has no lean MLP.\nLeave lean_mlp out, or choose another family.')
        for block in blocks:
            block.lean_mlp = lean

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, in_channels, H, W)`` -> the raw map ``(N, C_i, H_i, W_i)`` for each of ``out_indices``."""
        outs = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`DenseBackbone.get_layer_depth`; a downsampling layer has the depth of its stage's first block."""
        name = param_name.removeprefix(prefix)
        depths = [len(stage.blocks) for stage in self.stages]
        num_depths = sum(depths) + 2
        top, *rest = name.split('.')
        if top == 'stem':
            return 0, num_depths
        if top.startswith('out_norm'):
            return num_depths - 1, num_depths
        if top != 'stages' or len(rest) < 2:
            raise no_such_parameter(self, param_name, prefix)
        first = 1 + sum(depths[: int(rest[0])])
        return (first + int(rest[2]) if rest[1] == 'blocks' else first), num_depths

    def get_stage_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`DenseBackbone.get_stage_depth`; all downsampling layers have depth 0, like the stem."""
        depth, num_depths = self.get_layer_depth(param_name, prefix)
        num_stages = len(self.stages)
        if depth == num_depths - 1:
            return num_stages + 1, num_stages + 2
        parts = param_name.removeprefix(prefix).split('.')
        is_block = parts[0] == 'stages' and parts[2] == 'blocks'
        return (int(parts[1]) + 1 if is_block else 0), num_stages + 2

    @classmethod
    def convert_state_dict(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under this class's names, without changing anything in place."""
        return dict(state_dict)

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Names of the layers that take the image."""
        return tuple(f'stem.{name}' for name, module in self.stem.named_modules() if isinstance(module, nn.Conv2d))[:1]

    def leaves_out(self, name: str) -> bool:
        """See :meth:`DenseBackbone.leaves_out`."""
        top, *rest = name.split('.')
        is_beyond = top == 'stages' and bool(rest) and rest[0].isdigit() and int(rest[0]) >= len(self.stages)
        return is_beyond or self._is_other_norm(top) or name.startswith(self.CLASSIFIER_PREFIXES)

    def _frozen_modules(self) -> Iterable[nn.Module]:
        if self.frozen_stages < 0:
            return ()
        return (self.stem, *self.stages[: self.frozen_stages])


def no_such_parameter(backbone: DenseBackbone, param_name: str, prefix: str) -> ValueError:
    """Return the error for a name that is not one of the backbone's parameters."""
    return ValueError(f'{type(backbone).__name__} has no parameter {param_name!r}.\nCheck prefix={prefix!r}.')


def resolve_arch(arch: str | Mapping[str, Any], archs: Mapping[str, ArchT]) -> ArchT:
    """Look up an arch by name, or make one from a dict with the same fields.

    Args:
        arch: A name, or the fields of an unnamed arch.
        archs: A family's archs by name.

    Raises:
        ValueError: A name or field is unknown, a field is missing, or lists differ in length.
    """
    arch_type: Any = type(next(iter(archs.values())))
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(f'Unknown arch {arch!r}; allowed: {", ".join(archs)}, or a dict.\nName one of these.')
        return archs[arch]
    known = {f.name for f in fields(arch_type)}
    required = {f.name for f in fields(arch_type) if f.default is MISSING}
    if not required <= set(arch) <= known:
        raise ValueError(
            f'arch has the fields {sorted(arch)}; allowed: {sorted(known)}, required: {sorted(required)}.\n'
            f'Give these fields or one of the names {", ".join(archs)}.'
        )
    return arch_type(**{key: tuple(value) if isinstance(value, list) else value for key, value in arch.items()})


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Check ``out_indices``, and return it as a tuple.

    Raises:
        ValueError: It is empty, not ascending, or names a stage that the network does not have.
    """
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= num_stages:
        raise ValueError(
            f'out_indices={out_indices!r}; allowed: ascending stage numbers from 0 to {num_stages - 1}.\n'
            'Name each stage that you want once, for example (0, 1, 2, 3).'
        )
    return indices


def check_drop_path_rate(drop_path_rate: float) -> None:
    """Check that the probability of dropping a residual branch is in [0, 1).

    Raises:
        ValueError: It is not.
    """
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}; allowed: at least 0, below 1.\nGive a probability.')


def drop_path_rates(drop_path_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Spread stochastic depth linearly over all blocks, from 0 at the first to ``drop_path_rate`` at the last.

    Args:
        drop_path_rate: Probability of dropping the last block's residual branch, in [0, 1).
        depths: Blocks per stage of the whole architecture.

    Returns:
        A rate for each block of each stage.

    Raises:
        ValueError: The rate is outside [0, 1).
    """
    check_drop_path_rate(drop_path_rate)
    # On the CPU even if the model is built on the meta device, which holds no numbers.
    rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu')
    return [stage.tolist() for stage in rates.split(list(depths))]
