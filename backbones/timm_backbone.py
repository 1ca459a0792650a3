"""Any timm network that returns features, with the guarantees of :class:`backbones.base.DenseBackbone`.

timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) has several hundred networks. timm's own code
builds and runs them. This module adds what detectors and segmentors rely on: strict local weights, output norms,
freezing, layer depths, and no parameters after the last map, which would get no gradient.

Shapes: N batch, C channels, H and W height and width.
"""

import difflib
import inspect
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import timm
import torch
from mmengine.registry import MODELS
from timm.layers import PatchEmbed
from timm.models import group_parameters
from torch import Tensor, nn

from backbones.base import DenseBackbone, check_drop_path_rate, check_out_indices, no_such_parameter
from backbones.layers import keep_statistics_in_recomputation
from backbones.serialization import CheckpointError

# Options of timm's constructors that have their own argument here, or would break a guarantee of the backbone.
_RESERVED = {
    'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'features_only',
    'out_indices', 'feature_cls', 'in_chans', 'num_classes', 'drop_path_rate',
}  # fmt: skip
_BUILD_ERRORS = (TypeError, AssertionError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Feature:
    """A feature map of a timm network.

    Attributes:
        channels: C.
        stride: Input pixels per output pixel.
        module: Name of the module that computes it; the modules before it, in timm's order, lead to it.
    """

    channels: int
    stride: int
    module: str


@MODELS.register_module()
class TimmBackbone(DenseBackbone):
    """A timm network that returns the maps of its stages.

    Stages are timm's features, in timm's order. In most networks stage 0 has stride 4, but ResNets, RegNets,
    EfficientNets and MobileNets begin with stride 2, and every block of a plain vision transformer is a stage.
    ``out_strides`` has the actual strides. Odd sizes are rounded as the network rounds them; transformers pad them to
    whole patches.

    Vision transformers accept only one image size by default. Set it with ``timm_options=dict(img_size=(512, 512))``,
    or allow any size with ``dict(dynamic_img_size=True)`` (ViT) or ``dict(strict_img_size=False)`` (Swin).
    HRNet and CrossViT keep parts that a subset of their maps does not need; to train such a subset on several GPUs, set
    ``find_unused_parameters=True``.

    Args:
        arch: timm's name, with or without the tag of its weights (``'convnext_tiny.fb_in22k'``).
        in_channels: Channels of the images, at least 1.
        out_indices: Stages whose maps are returned, in ascending order; 0 is the first. None means the last four.
        drop_path_rate: Stochastic depth of the last block, in [0, 1), spread over the blocks as timm does it for this
            network.
        timm_options: Further arguments for timm's constructor of this network, for example ``dict(drop_rate=0.1)``.
        with_cp: Activation checkpointing; an error if timm does not offer it for this network.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with a file or URL of weights in timm's layout, or in one
            that timm converts (other names, position embeddings of another image size). ``checkpoint='timm'`` makes
            timm download the weights that it publishes for ``arch``; otherwise timm downloads nothing.
        out_norm, frozen_stages, norm_eval: See :class:`backbones.base.DenseBackbone`.

    Raises:
        ValueError: timm has no such network, it returns no features, or an argument is invalid.
    """

    CLASSIFIER_PREFIXES: ClassVar[tuple[str, ...]] = ()  # timm's full model shows which names are the classifier's
    body: nn.Module

    def __init__(
        self,
        arch: str = 'tf_efficientnet_lite0',
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        out_norm: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        timm_options: Mapping[str, Any] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        options = _checked_options(arch, in_channels, timm_options)
        body = _build_body(arch, options, drop_path_rate)
        _pad_odd_sizes(body)
        features = _features_of(body, arch)
        if out_indices is None:
            out_indices = range(max(0, len(features) - 4), len(features))
        indices = check_out_indices(out_indices, len(features))
        # Indices among the remaining maps; they change only if timm drops maps before the first.
        take = tuple(body.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True))
        stages = _stages_of_modules(body, [feature.module for feature in features[: indices[-1] + 1]])
        if frozen_stages >= 0 and stages is None:
            raise ValueError(
                f'frozen_stages={frozen_stages}, but timm does not say which modules of {arch!r} form its stages.\n'
                'Leave frozen_stages at -1 for this network.'
            )
        self._stages = stages  # plain data, which can be set before nn.Module's constructor runs
        self._options = options
        self._take = take
        self.arch = arch
        super().__init__(
            parts=dict(body=body),
            dims=[feature.channels for feature in features],
            strides=[feature.stride for feature in features],
            out_indices=indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            init_cfg=init_cfg,
        )
        self._in_forward = False
        if with_cp:
            _checkpoint_activations(body, arch)
            keep_statistics_in_recomputation(body, is_recomputation=self._is_recomputation)

    def forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, in_channels, H, W)`` -> the raw map ``(N, C_i, H_i, W_i)`` for each of ``out_indices``."""
        self._in_forward = True
        try:
            return tuple(
                self.body.forward_intermediates(x, indices=list(self._take), output_fmt='NCHW', intermediates_only=True)
            )
        finally:
            self._in_forward = False

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`DenseBackbone.get_layer_depth`; uses timm's own groups of layers, or stages if it has none."""
        if not hasattr(self.body, 'group_matcher'):
            return self.get_stage_depth(param_name, prefix)
        return self._depth(param_name, prefix, self._layer_depths, 1 + max(self._layer_depths.values()))

    def get_stage_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`DenseBackbone.get_stage_depth`; a downsampling layer belongs to the stage that it leads to."""
        if self._stages is None:
            raise ValueError(
                f'timm does not say which modules of {self.arch!r} form its stages.\nUse layer-wise decay instead.'
            )
        return self._depth(param_name, prefix, self._stage_depths, self.out_indices[-1] + 2)

    @property
    def input_layers(self) -> tuple[str, ...]:
        """Names of the layers that take the image."""
        names = self.body.pretrained_cfg.get('first_conv') or ()
        return tuple(f'body.{name}' for name in ((names,) if isinstance(names, str) else names))

    def named_weights(self, source: str) -> Mapping[str, Tensor] | None:
        """Download the weights that timm publishes for this network, if ``source`` is ``'timm'``.

        Raises:
            CheckpointError: timm publishes none, or they cannot be downloaded.
        """
        if source != 'timm':
            return None
        try:
            return timm.create_model(self.arch, pretrained=True, **self._options).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f'timm cannot get its weights for {self.arch!r}: {_first_line(error)}.\n'
                'Check the connection and the name, or give a file (.pth, .safetensors) as checkpoint.'
            ) from error

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a checkpoint to this backbone's names.

        Args:
            state_dict: In the layout of this class or of timm's full model, or in one that timm's own conversion for
                this network reads. It is not changed.

        Returns:
            Tensors by names that begin with ``body.`` or ``out_norm``; unknown tensors keep their names after
            ``body.``.
        """
        if not self._own_names.isdisjoint(state_dict):
            return dict(state_dict)
        whole = self._build_whole()
        own_names = {key.removeprefix('body.') for key in self._own_names if key.startswith('body.')}
        candidates = [dict(state_dict), *_converted_by_timm(state_dict, whole)]
        best = min(candidates, key=lambda state: _num_differences(state, own_names, whole.state_dict()))
        return {f'body.{key}': value for key, value in best.items()}

    def leaves_out(self, name: str) -> bool:
        """See :meth:`DenseBackbone.leaves_out`."""
        if name in self._own_names:
            return False
        return self._is_other_norm(name.split('.')[0]) or name in self._whole_names

    @cached_property
    def _own_names(self) -> frozenset[str]:
        return frozenset(self.state_dict())

    @cached_property
    def _whole_names(self) -> frozenset[str]:
        return frozenset(f'body.{key}' for key in self._build_whole().state_dict())

    @cached_property
    def _layer_depths(self) -> Mapping[str, int]:
        return group_parameters(self.body, self.body.group_matcher(), reverse=True)

    @cached_property
    def _stage_depths(self) -> Mapping[str, int]:
        return {name: self._stage_of_parameter(name) for name, _ in self.body.named_parameters()}

    def _build_whole(self) -> nn.Module:
        """Build timm's model with classifier and all stages, on the meta device: only names and shapes are needed."""
        with torch.device('meta'):
            return _build(self.arch, self._options)

    def _depth(self, param_name: str, prefix: str, depths: Mapping[str, int], depth_of_heads: int) -> tuple[int, int]:
        name = param_name.removeprefix(prefix)
        top, _, rest = name.partition('.')
        if top == 'body' and rest in depths:
            return depths[rest], depth_of_heads + 1
        if top.startswith('out_norm'):
            return depth_of_heads, depth_of_heads + 1
        raise no_such_parameter(self, param_name, prefix)

    def _stage_of_parameter(self, name: str) -> int:
        owner = name.rpartition('.')[0]
        # Parameters outside of any module (position and class embeddings) are added to the stem's output.
        return self._stages[owner] if self._stages and owner else 0

    def _frozen_modules(self) -> Iterable[nn.Module]:
        stages = self._stages or {}
        return [self.body.get_submodule(name) for name, i in stages.items() if name and i <= self.frozen_stages]

    def _frozen_parameters(self) -> Iterable[nn.Parameter]:
        named = self.body.named_parameters()
        return [parameter for name, parameter in named if self._stage_of_parameter(name) <= self.frozen_stages]

    def _is_recomputation(self) -> bool:
        return not self._in_forward


def _checked_options(arch: str, in_channels: int, timm_options: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(timm_options or {})
    reserved = sorted(_RESERVED & set(options))
    if reserved:
        raise ValueError(
            f'timm_options must not contain {", ".join(reserved)}.\n'
            'Use in_channels, out_indices, drop_path_rate and init_cfg; a backbone has no classifier.'
        )
    name = arch.split('.')[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(
            f'timm {timm.__version__} has no network {arch!r}; similar names: {", ".join(close) or "none"}.\n'
            'Name one of timm.list_models().'
        )
    return dict(options, in_chans=in_channels)


def _build_body(arch: str, options: Mapping[str, Any], drop_path_rate: float) -> Any:
    check_drop_path_rate(drop_path_rate)
    options = dict(options, num_classes=0)
    try:
        # Pass 0, too: if it were left out, timm's default would apply, which is 0.1 for some networks.
        return _build(arch, dict(options, drop_path_rate=drop_path_rate))
    except ValueError:
        if drop_path_rate > 0:
            raise
        return _build(arch, options)  # networks without stochastic depth do not accept the argument


def _build(arch: str, options: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(arch, pretrained=False, **options)
    except _BUILD_ERRORS as error:
        raise ValueError(
            f'timm cannot build {arch!r} with {dict(options)}: {_first_line(error)}.\n'
            'Check in_channels, drop_path_rate and timm_options; not every network has every option.'
        ) from error


def _pad_odd_sizes(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, PatchEmbed):
            module.dynamic_img_pad = True  # to a multiple of the patch; no effect at the network's own size


def _features_of(body: nn.Module, arch: str) -> list[Feature]:
    rows: Any = getattr(body, 'feature_info', None)
    needed = ('forward_intermediates', 'prune_intermediate_layers')
    if not rows or not all(hasattr(body, method) for method in needed):
        raise ValueError(
            f"timm's network {arch!r} returns no features (feature_info, {', '.join(needed)}).\n"
            'Choose one that does; all families in timm 1.0.31 do.'
        )
    return [Feature(row['num_chs'], row['reduction'], row['module']) for row in getattr(rows, 'info', rows)]


def _stages_of_modules(body: nn.Module, last_modules: Sequence[str]) -> dict[str, int] | None:
    """Number the modules: 0 for the stem, i + 1 for the modules that lead from map i - 1 to map i.

    timm's networks register their modules in the order in which they run.

    Args:
        body: The network.
        last_modules: For each map, the module that computes it.

    Returns:
        Module name -> number. A module with children has the highest number of its children. None if ``last_modules``
        has an unknown name.
    """
    names: list[str] = []
    is_trained: list[bool] = []
    last_inside: dict[str, int] = {}  # position of the last module in each module
    for position, (name, module) in enumerate(body.named_modules()):
        names.append(name)
        is_trained.append(any(True for _ in module.parameters(recurse=False)))
        parts = name.split('.')
        last_inside.update({'.'.join(parts[: i + 1]): position for i in range(len(parts))})
    if not set(last_modules) <= set(names) - {''}:
        return None
    ends = list(accumulate((last_inside[name] for name in last_modules), max))
    first = names.index(last_modules[0])
    if not any(is_trained[1:first]):  # the first map is the stem's own
        first = ends[0] + 1
    return {
        name: 0 if position < first else 1 + min(bisect_left(ends, position), len(ends) - 1)
        for name, position in last_inside.items()
    }


def _checkpoint_activations(body: Any, arch: str) -> None:
    try:
        body.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f'with_cp=True, but timm has no activation checkpointing for {arch!r}.\n'
            'Leave with_cp at False, or choose another network.'
        ) from error


def _converted_by_timm(state_dict: Mapping[str, Tensor], whole: nn.Module) -> list[dict[str, Tensor]]:
    """Convert a checkpoint with timm's code for this family; empty if timm has none or it cannot read the
    checkpoint."""  # By timm's convention, the function is in the module of the network's class.
    convert = getattr(sys.modules[type(whole).__module__], 'checkpoint_filter_fn', None)
    if convert is None:
        return []
    num_arguments = sum(p.default is p.empty for p in inspect.signature(convert).parameters.values())
    try:
        return [dict(convert(dict(state_dict), *([whole] if num_arguments > 1 else [])))]
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError):
        return []  # a checkpoint of another network: comparing the unconverted names shows which


def _num_differences(state: Mapping[str, Tensor], own: set[str], whole: Mapping[str, Tensor]) -> int:
    """Count names that are missing, unknown or of another shape."""
    misfits = [key for key, value in state.items() if key not in whole or whole[key].shape != value.shape]
    return len(own - set(state)) + len(misfits)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split('\n')[0].rstrip('.') or type(error).__name__
