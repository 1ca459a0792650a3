"""What every backbone of this package promises.

:class:`DenseBackbone` is the promise, :class:`StagedBackbone` what the families with a stem and stages have in common.
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

    What holds for all stands here: output norms, freezing, initialisation, which keys of a checkpoint count. A subclass
    builds the network, computes the maps (:meth:`forward_stages`) and knows which part lies where.

    Args:
        parts: Name -> module: the network, up to the last stage of ``out_indices``; what lies behind it would be
            parameters without a gradient.
        dims: Channels of every stage of the architecture.
        strides: Input pixels per output pixel of every stage of the architecture.
        out_indices: Stages whose maps are returned, ascending, 0 is the first.
        out_norm: Norm on each returned map, for example ``dict(type='SyncBN')``; None returns raw stage outputs.
        frozen_stages: -1 trains everything, 0 freezes the stem, k freezes the stem and the first k stages: their
            parameters get no gradient and their batch statistics stay.
        norm_eval: Keep every batch norm of the network (not of the outputs) in eval mode while training.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with a file, a URL or a record's name
            (:data:`backbones.weights.WEIGHTS`).

    Raises:
        ValueError: ``frozen_stages`` or ``out_norm`` is out of its range.
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
                f'frozen_stages={frozen_stages}, allowed are -1 to {num_stages}.\n'
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
            x: Images ``(N, in_channels, H, W)``, H and W at least the largest stride, any remainder.

        Returns:
            One map ``(N, C_i, H // stride_i, W // stride_i)`` for each of ``out_indices``.
        """
        outs = self.forward_stages(x)
        if not self._has_out_norm:
            return outs
        return tuple(self.get_submodule(f'out_norm{i}')(out) for i, out in zip(self.out_indices, outs, strict=True))

    def train(self, mode: bool = True) -> 'DenseBackbone':
        """Switch between training and evaluation; frozen parts stay in evaluation mode. Returns self."""
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
                f'init_cfg={self.init_cfg!r} is not understood by {type(self).__name__}.\n'
                "Give dict(type='Pretrained', checkpoint=FILE, URL or NAME[, prefix=...]) or None."
            )
        report = load_pretrained(self, self.init_cfg['checkpoint'], prefix=self.init_cfg.get('prefix'))
        print_log(str(report), logger='current')
        if hasattr(self, '_params_init_info'):  # set by the model that this backbone is part of
            update_init_info(self, init_info=str(report))
        self._is_init = True

    @abstractmethod
    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, in_channels, H, W)`` -> the raw map ``(N, C_i, H_i, W_i)`` for each of ``out_indices``."""

    @abstractmethod
    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tell how deep a parameter lies, for layer-wise learning-rate decay.

        The stem has depth 0, the k-th block of the whole network depth k, an output norm the depth after the last
        block (as the heads).

        Args:
            param_name: Name of a parameter, as in ``named_parameters()`` of the model that holds the backbone.
            prefix: What stands before the backbone's own names, for example ``'backbone.'``.

        Returns:
            The depth, and the number of depths: ``2 + number of blocks``.

        Raises:
            ValueError: The backbone has no such parameter.
        """

    @abstractmethod
    def get_stage_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tell which stage a parameter belongs to, for stage-wise learning-rate decay.

        The stem has depth 0, the blocks of stage i depth ``i + 1``, an output norm the depth after the last stage (as
        the heads).

        Args:
            param_name: Name of a parameter, as in ``named_parameters()`` of the model that holds the backbone.
            prefix: What stands before the backbone's own names, for example ``'backbone.'``.

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
        """Rename the keys of a published checkpoint to this backbone's names; nothing is changed in place."""

    @abstractmethod
    def leaves_out(self, name: str) -> bool:
        """Tell whether a tensor of a converted checkpoint belongs to the network, but not to this backbone.

        Such are the classifier, stages behind the last of ``out_indices``, and norms of other outputs.
        """

    def named_weights(self, source: str) -> Mapping[str, Tensor] | None:
        """Fetch weights that this class knows under a name of its own; None if ``source`` is no such name."""
        return None

    @staticmethod
    def families() -> 'tuple[type[StagedBackbone], ...]':
        """Every family with a table of archs that was imported."""
        return tuple(StagedBackbone.__subclasses__())

    def _is_other_norm(self, name: str) -> bool:
        return name.startswith('out_norm') and not hasattr(self, name)

    def _freeze(self) -> None:
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)

    @abstractmethod
    def _frozen_modules(self) -> Iterable[nn.Module]:
        """Modules that are frozen with all that they hold."""

    def _frozen_parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for module in self._frozen_modules() for parameter in module.parameters())


class StagedBackbone(DenseBackbone):
    """A backbone of a stem and stages of blocks: the module tree that all families of this package share.

    Args:
        stem: ``(N, in_channels, H, W) -> (N, C_0, H / 4, W / 4)`` or as the family has it.
        stages: The stages up to the last of ``out_indices``.
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
        """Let the MLPs compute their hidden maps again in the backward pass instead of holding them, or stop that.

        Raises:
            ValueError: The family's blocks cannot.
        """
        blocks = [block for stage in self.stages for block in stage.blocks]
        if not all(hasattr(block, 'lean_mlp') for block in blocks):
            raise ValueError(f'{type(self).__name__} has no lean MLP.\nLeave it out, or choose another family.')
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
        """See :meth:`DenseBackbone.get_layer_depth`; a downsampling has the depth of its stage's first block."""
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
        """See :meth:`DenseBackbone.get_stage_depth`; all downsamplings have depth 0, as the stem."""
        depth, num_depths = self.get_layer_depth(param_name, prefix)
        num_stages = len(self.stages)
        if depth == num_depths - 1:
            return num_stages + 1, num_stages + 2
        parts = param_name.removeprefix(prefix).split('.')
        is_block = parts[0] == 'stages' and parts[2] == 'blocks'
        return (int(parts[1]) + 1 if is_block else 0), num_stages + 2

    @classmethod
    def convert_state_dict(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a published checkpoint to this class's names; pure, no tensor is changed."""
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
    """The error for a name that is none of the backbone's parameters."""
    return ValueError(f'{param_name!r} is no parameter of {type(backbone).__name__}.\nCheck prefix={prefix!r}.')


def resolve_arch(arch: str | Mapping[str, Any], archs: Mapping[str, ArchT]) -> ArchT:
    """Look up a name in a family's table, or make an arch from a dict with the same fields.

    Raises:
        ValueError: An unknown name or field, a missing field, or lists of different lengths.
    """
    arch_type: Any = type(next(iter(archs.values())))
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(f'Unknown arch {arch!r}; allowed are {", ".join(archs)}, or a dict.\nName one of these.')
        return archs[arch]
    known = {f.name for f in fields(arch_type)}
    required = {f.name for f in fields(arch_type) if f.default is MISSING}
    if not required <= set(arch) <= known:
        raise ValueError(
            f'arch has the fields {sorted(arch)}; allowed are {sorted(known)}, needed are {sorted(required)}.\n'
            f'Give these fields or one of the names {", ".join(archs)}.'
        )
    return arch_type(**{key: tuple(value) if isinstance(value, list) else value for key, value in arch.items()})


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Return ``out_indices`` as a tuple.

    Raises:
        ValueError: It is empty, not ascending, or names a stage that the network does not have.
    """
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= num_stages:
        raise ValueError(
            f'out_indices={out_indices!r}, allowed are ascending stage numbers from 0 to {num_stages - 1}.\n'
            'Name each wanted stage once, for example (0, 1, 2, 3).'
        )
    return indices


def check_drop_path_rate(drop_path_rate: float) -> None:
    """Check that a probability of dropping a residual branch lies in [0, 1).

    Raises:
        ValueError: It does not.
    """
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}, allowed are 0 to below 1.\nGive a probability.')


def drop_path_rates(drop_path_rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Spread stochastic depth linearly over all blocks, from 0 at the first to ``drop_path_rate`` at the last.

    Args:
        drop_path_rate: Probability of dropping the last block's residual branch, in [0, 1).
        depths: Blocks per stage of the whole architecture.

    Returns:
        A rate for each block of each stage.

    Raises:
        ValueError: The rate lies outside [0, 1).
    """
    check_drop_path_rate(drop_path_rate)
    # On the CPU also where the model is built on the meta device, which holds no numbers.
    rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu')
    return [stage.tolist() for stage in rates.split(list(depths))]
