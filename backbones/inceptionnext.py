"""InceptionNeXt: When Inception Meets ConvNeXt. Yu, Zhou, Yan, Wang. CVPR 2024, https://arxiv.org/abs/2303.16900

Original code: https://github.com/sail-sg/inceptionnext (Apache-2.0); its names of modules are kept, so its checkpoints
and timm's fit. This network was written anew for dense prediction: stage outputs instead of a classifier, optional
output norms (added by the authors for segmentation, too), freezing and activation checkpointing.

Two places where the paper's text and its published weights disagree; the weights are followed:
- The mixer's channels are ordered (identity, square, width, height); Algorithm 1 prints the identity last.
- Atto's second stage has 80 channels; Table 3 prints 90.

Shapes: N batch, C channels, H and W height and width of a map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.base import StagedBackbone, check_out_indices, drop_path_rates, resolve_arch
from backbones.layers import Stage, build_norm, init_layer


@dataclass(frozen=True)
class InceptionNeXtArch:
    """One column of Table 3.

    Attributes:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratios: Width of the MLP over the channels, for each stage.
        band_kernel: Length of the 1 x k and k x 1 depthwise kernels, odd.
        square_kernel: Side of the square depthwise kernel, odd.
        branch_ratio: Share of the channels that each of the three convolution branches takes, in (0, 1/3].
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 3)
    band_kernel: int = 11
    square_kernel: int = 3
    branch_ratio: float = 1 / 8

    def __post_init__(self) -> None:
        if not len(self.dims) == len(self.depths) == len(self.mlp_ratios):
            raise ValueError(
                f'dims={self.dims}, depths={self.depths} and mlp_ratios={self.mlp_ratios} differ in length.\n'
                'Give one value for each stage in all three.'
            )
        if not 0 < self.branch_ratio <= 1 / 3:
            raise ValueError(
                f'branch_ratio={self.branch_ratio}, allowed is (0, 1/3].\nThree branches share the channels.'
            )


class InceptionDWConv(nn.Module):
    """The token mixer: identity, square, 1 x k and k x 1 depthwise convolutions side by side (Section 3.2, Fig. 2).

    Args:
        dim: Channels C.
        square_kernel: Side of the square kernel.
        band_kernel: Length k of the band kernels.
        branch_ratio: Share of the channels for each convolution.
    """

    def __init__(self, dim: int, square_kernel: int, band_kernel: int, branch_ratio: float) -> None:
        super().__init__()
        width = int(dim * branch_ratio)
        square, band = square_kernel // 2, band_kernel // 2
        self.dwconv_hw = nn.Conv2d(width, width, square_kernel, padding=square, groups=width)
        self.dwconv_w = nn.Conv2d(width, width, (1, band_kernel), padding=(0, band), groups=width)
        self.dwconv_h = nn.Conv2d(width, width, (band_kernel, 1), padding=(band, 0), groups=width)
        self.split_sizes = (dim - 3 * width, width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, hw, w, h = torch.split(x, self.split_sizes, dim=1)
        return torch.cat((identity, self.dwconv_hw(hw), self.dwconv_w(w), self.dwconv_h(h)), dim=1)


class ConvMlp(nn.Module):
    """Two 1 x 1 convolutions with a GELU between.

    Args:
        dim: Channels C in and out.
        hidden_dim: Channels between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.fc2(self.act(self.fc1(x)))


class MetaNeXtBlock(nn.Module):
    """Token mixer, norm, MLP, layer scale and one shortcut around all of them (equation 3).

    Args:
        token_mixer: ``(N, C, H, W) -> (N, C, H, W)``.
        norm: Norm of C channels.
        mlp: ``(N, C, H, W) -> (N, C, H, W)``.
        dim: Channels C.
        drop_path: Probability of dropping the branch, per sample.
        layer_scale_init_value: Initial factor of each channel; None or 0 for none.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        *,
        token_mixer: nn.Module,
        norm: nn.Module,
        mlp: nn.Module,
        dim: int,
        drop_path: float,
        layer_scale_init_value: float | None,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = norm
        self.mlp = mlp
        scaled = layer_scale_init_value is not None and layer_scale_init_value != 0
        self.register_parameter(
            'gamma', nn.Parameter(torch.full((dim,), float(layer_scale_init_value or 0))) if scaled else None
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        branch = self.mlp(self.norm(self.token_mixer(x)))
        if self.gamma is not None:
            branch = branch * self.gamma.view(1, -1, 1, 1)
        return self.drop_path(branch) + x


@MODELS.register_module()
class InceptionNeXt(StagedBackbone):
    """InceptionNeXt that returns the maps of its stages, at strides 4, 8, 16 and 32.

    Args:
        arch: A name in :attr:`ARCHS`, or a dict with the fields of :class:`InceptionNeXtArch`.
        in_channels: Channels of the images, at least 1.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0 at the first block.
        layer_scale_init_value: Initial layer scale; the published value is 1e-6. None or 0 leaves layer scale out.
        norm_cfg: Norm inside the network; published weights need ``BN`` (or ``SyncBN``).
        out_indices, out_norm, frozen_stages, norm_eval, with_cp, init_cfg: See
            :class:`backbones.base.StagedBackbone`.

    Raises:
        ValueError: An argument is out of its range; the message names it and what is allowed.
    """

    # Table 3, with the published code's corrections; parameters with the classifier: 4.2, 28.1, 49.4, 86.7 M.
    ARCHS: ClassVar[Mapping[str, InceptionNeXtArch]] = {
        'atto': InceptionNeXtArch((40, 80, 160, 320), (2, 2, 6, 2), band_kernel=9, branch_ratio=1 / 4),
        'tiny': InceptionNeXtArch((96, 192, 384, 768), (3, 3, 9, 3)),
        'small': InceptionNeXtArch((96, 192, 384, 768), (3, 3, 27, 3)),
        'base': InceptionNeXtArch((128, 256, 512, 1024), (3, 3, 27, 3)),
    }
    CLASSIFIER_PREFIXES = ('head.',)

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
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        row = resolve_arch(arch, self.ARCHS)
        indices = check_out_indices(out_indices, len(row.dims))
        rates = drop_path_rates(drop_path_rate, row.depths)
        norm_cfg = norm_cfg or dict(type='BN')
        super().__init__(
            stem=nn.Sequential(
                nn.Conv2d(in_channels, row.dims[0], kernel_size=4, stride=4), build_norm(norm_cfg, row.dims[0])
            ),
            stages=[_build_stage(row, i, rates[i], norm_cfg, layer_scale_init_value) for i in range(indices[-1] + 1)],
            dims=row.dims,
            strides=[4 * 2**i for i in range(len(row.dims))],
            out_indices=indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        self.apply(init_layer)


def _build_stage(
    row: InceptionNeXtArch,
    index: int,
    drop_paths: Sequence[float],
    norm_cfg: Mapping[str, Any],
    layer_scale_init_value: float | None,
) -> Stage:
    dim = row.dims[index]
    downsample: nn.Module = nn.Identity()
    if index > 0:
        previous = row.dims[index - 1]
        downsample = nn.Sequential(build_norm(norm_cfg, previous), nn.Conv2d(previous, dim, kernel_size=2, stride=2))
    blocks = [
        MetaNeXtBlock(
            token_mixer=InceptionDWConv(dim, row.square_kernel, row.band_kernel, row.branch_ratio),
            norm=build_norm(norm_cfg, dim),
            mlp=ConvMlp(dim, int(row.mlp_ratios[index] * dim)),
            dim=dim,
            drop_path=drop_path,
            layer_scale_init_value=layer_scale_init_value,
        )
        for drop_path in drop_paths
    ]
    return Stage(downsample, blocks)
