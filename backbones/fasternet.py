"""FasterNet: Run, Don't Walk. Chen, Kao, He, Zhuo, Wen, Lee, Chan. CVPR 2023, https://arxiv.org/abs/2303.03667

Original code: https://github.com/JierunChen/FasterNet (no licence file; the model file names the MIT licence). This is
a new implementation from the paper for dense prediction: stage outputs instead of a classifier, optional output norms
(plain batch norms in the authors' detectors), freezing and activation checkpointing.
:meth:`FasterNet.convert_state_dict` renames checkpoints from the authors and from timm.

The partial convolution splits and concatenates, in training and in inference. The first version of the paper timed a
shortcut that wrote the convolved channels into the input instead. The input is also the residual, so that is another
function.

Shapes: N batch, C channels, H and W height and width of a map.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.base import StagedBackbone, check_out_indices, drop_path_rates, resolve_arch
from backbones.layers import Stage, build_norm, init_layer

_ACTIVATIONS: Mapping[str, type[nn.Module]] = {'GELU': nn.GELU, 'ReLU': nn.ReLU}


@dataclass(frozen=True)
class FasterNetArch:
    """One column of Table 8.

    Attributes:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        act: Activation in the MLP, ``GELU`` or ``ReLU``.
        partial_ratio: Share of the channels, counted from the first, that is convolved, in (0, 1].
        mlp_ratio: Hidden channels of the MLP divided by the channels.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    act: str = 'ReLU'
    partial_ratio: float = 1 / 4
    mlp_ratio: float = 2

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.depths):
            raise ValueError(
                f'dims={self.dims} and depths={self.depths} differ in length.\nGive one value for each stage in both.'
            )
        if self.act not in _ACTIVATIONS:
            raise ValueError(f'Unknown act {self.act!r}; allowed: {", ".join(_ACTIVATIONS)}.\nName one of these.')
        if not (0 < self.partial_ratio <= 1 and int(min(self.dims) * self.partial_ratio) > 0):
            raise ValueError(
                f'partial_ratio={self.partial_ratio} with dims={self.dims}; allowed: a share in (0, 1].\n'
                'Give a share that leaves at least one channel of each stage to the convolution.'
            )


class PartialConv(nn.Module):
    """A 3 x 3 convolution of the first channels; the others pass unchanged (Section 3.2, PConv).

    Args:
        dim: Channels C.
        partial_ratio: Share of the channels that is convolved, in (0, 1].
    """

    def __init__(self, dim: int, partial_ratio: float) -> None:
        super().__init__()
        width = int(dim * partial_ratio)
        self.partial_conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.split_sizes = (width, dim - width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``, a new tensor: ``x`` is also the shortcut and must not change."""
        first, identity = torch.split(x, self.split_sizes, dim=1)
        return torch.cat((self.partial_conv3(first), identity), dim=1)


class FasterNetBlock(nn.Module):
    """Partial convolution and an MLP with one norm inside, with a shortcut around both (Figure 4).

    Args:
        dim: Channels C.
        arch: Settings that all blocks of the network share.
        norm_cfg: Norm of the MLP's hidden channels.
        drop_path: Probability of dropping the branch, per sample.
        layer_scale_init_value: Initial factor of each channel; None or 0 for none.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        *,
        dim: int,
        arch: FasterNetArch,
        norm_cfg: Mapping[str, Any],
        drop_path: float,
        layer_scale_init_value: float | None,
    ) -> None:
        super().__init__()
        hidden_dim = int(dim * arch.mlp_ratio)
        self.spatial_mixing = PartialConv(dim, arch.partial_ratio)
        self.mlp = nn.Sequential(
            nn.Conv2d(dim, hidden_dim, 1, bias=False),
            build_norm(norm_cfg, hidden_dim),
            _ACTIVATIONS[arch.act](),
            nn.Conv2d(hidden_dim, dim, 1, bias=False),
        )
        scale = torch.full((dim,), float(layer_scale_init_value)) if layer_scale_init_value else None
        self.register_parameter('gamma', None if scale is None else nn.Parameter(scale))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        branch = self.mlp(self.spatial_mixing(x))
        if self.gamma is not None:
            branch = branch * self.gamma.view(1, -1, 1, 1)
        return x + self.drop_path(branch)


@MODELS.register_module()
class FasterNet(StagedBackbone):
    """FasterNet that returns the maps of its stages, at strides 4, 8, 16 and 32.

    It has no lean MLP (:mod:`backbones.fast.lean_mlp`): the batch norm inside its MLP needs the hidden values of all
    positions before it can normalise one.

    Args:
        arch: A name in :attr:`ARCHS`, or a dict with the fields of :class:`FasterNetArch`.
        in_channels: Channels of the images, at least 1.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0 in the first block.
        layer_scale_init_value: Initial layer scale. The published FasterNet has none: None or 0.
        norm_cfg: Norm inside the network; published weights need ``BN`` (or ``SyncBN``).
        out_indices, out_norm, frozen_stages, norm_eval, with_cp, init_cfg: See
            :class:`backbones.base.StagedBackbone`.

    Raises:
        ValueError: An argument is invalid; the message names it and what is allowed.
    """

    # Table 8; parameters with the classifier: 3.9, 7.6, 15.0, 31.2, 53.5, 93.5 M.
    ARCHS: ClassVar[Mapping[str, FasterNetArch]] = {
        't0': FasterNetArch((40, 80, 160, 320), (1, 2, 8, 2), act='GELU'),
        't1': FasterNetArch((64, 128, 256, 512), (1, 2, 8, 2), act='GELU'),
        't2': FasterNetArch((96, 192, 384, 768), (1, 2, 8, 2)),
        's': FasterNetArch((128, 256, 512, 1024), (1, 2, 13, 2)),
        'm': FasterNetArch((144, 288, 576, 1152), (3, 4, 18, 3)),
        'l': FasterNetArch((192, 384, 768, 1536), (3, 4, 18, 3)),
    }
    CLASSIFIER_PREFIXES = ('avgpool_pre_head.', 'head.', 'conv_head.', 'classifier.')  # the authors' two, timm's two

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 't0',
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        spec = resolve_arch(arch, self.ARCHS)
        indices = check_out_indices(out_indices, len(spec.dims))
        rates = drop_path_rates(drop_path_rate, spec.depths)
        norm_cfg = norm_cfg or dict(type='BN')
        super().__init__(
            stem=_embedding(in_channels, spec.dims[0], 4, norm_cfg),
            stages=[_build_stage(spec, i, rates[i], norm_cfg, layer_scale_init_value) for i in range(indices[-1] + 1)],
            dims=spec.dims,
            strides=[4 * 2**i for i in range(len(spec.dims))],
            out_indices=indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.apply(init_layer)

    @classmethod
    def convert_state_dict(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under this class's names, without changing anything in place.

        It knows three layouts: the authors', where stages and mergings alternate in one list of seven (their detectors'
        output norms ``norm0``, ``norm2``, ... become ``out_norm0``, ``out_norm1``, ...), timm's, and this class's.

        Args:
            state_dict: Without wrapping and prefixes.

        Returns:
            The same tensors under this class's names; a classifier's tensors keep their names.
        """
        is_flat = any(_FLAT_MERGING.match(key) for key in state_dict)
        return {_rename(_unflatten(key) if is_flat else key): value for key, value in state_dict.items()}


_FLAT_MERGING = re.compile(r'stages\.(\d+)\.(?=reduction\.|norm\.)')
_FLAT_STAGE = re.compile(r'stages\.(\d+)\.(?=blocks\.)')
_FLAT_OUT_NORM = re.compile(r'norm(\d+)\.')
_RENAMES = (
    ('patch_embed.proj.', 'stem.0.'),
    ('patch_embed.norm.', 'stem.1.'),
    ('.downsample.reduction.', '.downsample.0.'),
    ('.downsample.norm.', '.downsample.1.'),
    ('.layer_scale', '.gamma'),
)


def _unflatten(key: str) -> str:
    # The authors' list: stage 0, merging, stage 1, merging, ...; timm puts each merging in the stage that it leads to.
    if match := _FLAT_MERGING.match(key):
        return f'stages.{(int(match[1]) + 1) // 2}.downsample.{key[match.end() :]}'
    if match := _FLAT_STAGE.match(key):
        return f'stages.{int(match[1]) // 2}.{key[match.end() :]}'
    if match := _FLAT_OUT_NORM.match(key):
        return f'out_norm{int(match[1]) // 2}.{key[match.end() :]}'
    return key


def _rename(key: str) -> str:
    for old, new in _RENAMES:
        key = key.replace(old, new)
    return key


def _embedding(in_channels: int, out_channels: int, stride: int, norm_cfg: Mapping[str, Any]) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride, bias=False)
    return nn.Sequential(conv, build_norm(norm_cfg, out_channels))


def _build_stage(
    arch: FasterNetArch,
    index: int,
    drop_paths: Sequence[float],
    norm_cfg: Mapping[str, Any],
    layer_scale_init_value: float | None,
) -> Stage:
    dim = arch.dims[index]
    downsample = _embedding(arch.dims[index - 1], dim, 2, norm_cfg) if index > 0 else nn.Identity()
    blocks = [
        FasterNetBlock(
            dim=dim,
            arch=arch,
            norm_cfg=norm_cfg,
            drop_path=drop_path,
            layer_scale_init_value=layer_scale_init_value,
        )
        for drop_path in drop_paths
    ]
    return Stage(downsample, blocks)
