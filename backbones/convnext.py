"""ConvNeXt: A ConvNet for the 2020s. Liu, Mao, Wu, Feichtenhofer, Darrell, Xie. CVPR 2022, https://arxiv.org/abs/2201.03545

Original code: https://github.com/facebookresearch/ConvNeXt (MIT). The variants with smaller kernels and with partial
depthwise convolutions are the ones that led to InceptionNeXt (Table 1 of https://arxiv.org/abs/2303.16900; code:
https://github.com/sail-sg/inceptionnext, Apache-2.0). This is a new implementation for dense prediction: stage outputs
instead of a classifier, optional output norms, freezing and activation checkpointing. Modules have timm's names;
:meth:`ConvNeXt.convert_state_dict` renames checkpoints from the authors and from mmpretrain.

The norm and the MLP run on channels-last maps, as in the original, where a position's channels are adjacent in memory.

Shapes: N batch, C channels, H and W height and width of a map.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from backbones.base import StagedBackbone, check_out_indices, drop_path_rates, resolve_arch
from backbones.fast.lean_mlp import can_be_lean
from backbones.fast.lean_mlp import lean_mlp as compute_lean_mlp
from backbones.layers import Stage, build_norm, init_layer


@dataclass(frozen=True)
class ConvNeXtArch:
    """One network of the papers.

    Attributes:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        kernel: Side of the depthwise kernels, odd.
        conv_ratio: Share of the channels, counted from the last, that is convolved depthwise, in (0, 1].
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    kernel: int = 7
    conv_ratio: float = 1

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.depths):
            raise ValueError(
                f'dims={self.dims} and depths={self.depths} differ in length.\nGive one value for each stage in both.'
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f'kernel={self.kernel}; allowed: odd numbers from 1.\nAn even kernel would shift and resize the map.'
            )
        if not (0 < self.conv_ratio <= 1 and int(min(self.dims) * self.conv_ratio) > 0):
            raise ValueError(
                f'conv_ratio={self.conv_ratio} with dims={self.dims}; allowed: a share in (0, 1].\n'
                'Give a share that leaves at least one channel of each stage to the convolution.'
            )


class PartialDWConv(nn.Module):
    """A depthwise convolution of the last channels; the first ones pass unchanged (InceptionNeXt, Section 3.1).

    Args:
        dim: Channels C.
        kernel: Side of the kernel, odd.
        conv_ratio: Share of the channels that is convolved, in (0, 1).
    """

    def __init__(self, dim: int, kernel: int, conv_ratio: float) -> None:
        super().__init__()
        width = int(dim * conv_ratio)
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.split_sizes = (dim - width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, last = torch.split(x, self.split_sizes, dim=1)
        return torch.cat((identity, self.conv(last)), dim=1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, MLP, layer scale and a shortcut around all of them (Figure 4).

    Args:
        conv_dw: ``(N, C, H, W) -> (N, C, H, W)``, spatial mixing.
        norm: Norm of C channels for ``(N, C, H, W)``.
        dim: Channels C; the MLP is four times as wide.
        drop_path: Probability of dropping the branch, per sample.
        layer_scale_init_value: Initial factor of each channel; None or 0 for none.

    Attributes:
        lean_mlp: Recompute the MLP's hidden map in the backward pass instead of storing it. A modified MLP (other
            layers or activation, adapters, hooks) runs layer by layer.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        *,
        conv_dw: nn.Module,
        norm: nn.Module,
        dim: int,
        drop_path: float,
        layer_scale_init_value: float | None,
    ) -> None:
        super().__init__()
        self.conv_dw = conv_dw
        self.norm = norm
        self.mlp = Mlp(dim, 4 * dim)
        scale = torch.full((dim,), float(layer_scale_init_value)) if layer_scale_init_value else None
        self.register_parameter('gamma', None if scale is None else nn.Parameter(scale))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.lean_mlp = False

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        branch = self.norm(self.conv_dw(x))
        if self.lean_mlp and can_be_lean(self.mlp, Mlp):
            branch = compute_lean_mlp(branch, fc1=self.mlp.fc1, fc2=self.mlp.fc2, gamma=self.gamma)
        else:
            branch = self.mlp(branch.permute(0, 2, 3, 1))  # (N, H, W, C)
            if self.gamma is not None:
                branch = branch * self.gamma
            branch = branch.permute(0, 3, 1, 2)  # (N, C, H, W)
        return x + self.drop_path(branch)


@MODELS.register_module()
class ConvNeXt(StagedBackbone):
    """ConvNeXt that returns the maps of its stages, at strides 4, 8, 16 and 32.

    Args:
        arch: A name in :attr:`ARCHS`, or a dict with the fields of :class:`ConvNeXtArch`.
        in_channels: Channels of the images, at least 1.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0 in the first block.
        layer_scale_init_value: Initial layer scale: 1e-6 for training on ImageNet, 1 in the authors' detectors and
            segmentors. Pretrained weights replace it. None or 0 leaves layer scale out.
        norm_cfg: Norm inside the network; published weights need the default, ``LN`` with eps 1e-6.
        out_indices, out_norm, frozen_stages, norm_eval, with_cp, lean_mlp, init_cfg: See
            :class:`backbones.base.StagedBackbone`.

    Raises:
        ValueError: An argument is invalid; the message names it and what is allowed.
    """

    # Section 3 of ConvNeXt; the variants: Table 1 of InceptionNeXt.
    ARCHS: ClassVar[Mapping[str, ConvNeXtArch]] = {
        'tiny': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3)),
        'tiny_k5': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=5),
        'tiny_k3': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3),
        'tiny_k3_par1_2': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3, conv_ratio=1 / 2),
        'tiny_k3_par3_8': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3, conv_ratio=3 / 8),
        'tiny_k3_par1_4': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3, conv_ratio=1 / 4),
        'tiny_k3_par1_8': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3, conv_ratio=1 / 8),
        'tiny_k3_par1_16': ConvNeXtArch((96, 192, 384, 768), (3, 3, 9, 3), kernel=3, conv_ratio=1 / 16),
        'small': ConvNeXtArch((96, 192, 384, 768), (3, 3, 27, 3)),
        'base': ConvNeXtArch((128, 256, 512, 1024), (3, 3, 27, 3)),
    }
    CLASSIFIER_PREFIXES = ('head.', 'norm.')

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        out_norm: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        norm_cfg: Mapping[str, Any] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        lean_mlp: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        spec = resolve_arch(arch, self.ARCHS)
        indices = check_out_indices(out_indices, len(spec.dims))
        rates = drop_path_rates(drop_path_rate, spec.depths)
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-6)
        super().__init__(
            stem=nn.Sequential(
                nn.Conv2d(in_channels, spec.dims[0], kernel_size=4, stride=4),
                build_norm(norm_cfg, spec.dims[0]),
            ),
            stages=[_build_stage(spec, i, rates[i], norm_cfg, layer_scale_init_value) for i in range(indices[-1] + 1)],
            dims=spec.dims,
            strides=[4 * 2**i for i in range(len(spec.dims))],
            out_indices=indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            lean_mlp=lean_mlp,
            init_cfg=init_cfg,
        )
        self.apply(init_layer)

    @classmethod
    def convert_state_dict(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under this class's names, without changing anything in place.

        It knows the layouts of the authors (and of InceptionNeXt's variants), of timm, and of mmpretrain, whose output
        norms become ``out_norm{i}``. If only the last stage has a norm, it belongs to the classifier, as in
        mmpretrain's ImageNet weights, and becomes ``norm``. Weights of 1 x 1 convolutions become linear weights, as
        views.

        Args:
            state_dict: Without wrapping and prefixes.

        Returns:
            The same tensors under this class's names; a classifier's tensors keep their names.
        """
        output_norms = {key.split('.')[0] for key in state_dict if re.match(r'norm\d\.', key)}
        norms = (r'norm3\.', 'norm.') if output_norms == {'norm3'} else (r'norm(\d)\.', r'out_norm\1.')
        converted = {}
        for key, value in state_dict.items():
            for pattern, replacement in (norms, *_RENAMES):
                key = re.sub(f'^{pattern}', replacement, key)
            is_pointwise = re.search(r'\.mlp\.fc[12]\.weight$', key) and value.shape[2:] == (1, 1)
            converted[key] = value.flatten(1) if is_pointwise else value
        return converted


# Applied in this order to the beginning of each key.
_RENAMES = (
    (r'downsample_layers\.0\.', 'stem.'),
    (r'downsample_layers\.(\d+)\.', r'stages.\1.downsample.'),
    (r'stages\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'(stages\.\d+\.blocks\.\d+\.)(dwconv|depthwise_conv)\.', r'\1conv_dw.'),
    (r'(stages\.\d+\.blocks\.\d+\.)(pwconv|pointwise_conv)([12])\.', r'\1mlp.fc\3.'),
)


def _build_stage(
    arch: ConvNeXtArch,
    index: int,
    drop_paths: Sequence[float],
    norm_cfg: Mapping[str, Any],
    layer_scale_init_value: float | None,
) -> Stage:
    dim = arch.dims[index]
    downsample: nn.Module = nn.Identity()
    if index > 0:
        previous = arch.dims[index - 1]
        downsample = nn.Sequential(build_norm(norm_cfg, previous), nn.Conv2d(previous, dim, kernel_size=2, stride=2))
    blocks = [
        ConvNeXtBlock(
            conv_dw=_build_conv_dw(dim, arch.kernel, arch.conv_ratio),
            norm=build_norm(norm_cfg, dim),
            dim=dim,
            drop_path=drop_path,
            layer_scale_init_value=layer_scale_init_value,
        )
        for drop_path in drop_paths
    ]
    return Stage(downsample, blocks)


def _build_conv_dw(dim: int, kernel: int, conv_ratio: float) -> nn.Module:
    if conv_ratio < 1:
        return PartialDWConv(dim, kernel, conv_ratio)
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
