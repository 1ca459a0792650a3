"""InceptionNeXt: When Inception Meets ConvNeXt. Yu, Zhou, Yan, Wang. CVPR 2024, https://arxiv.org/abs/2303.16900

Original code: https://github.com/sail-sg/inceptionnext (Apache-2.0). Its module names are kept, so its checkpoints and
timm's fit. This is a new implementation for dense prediction: stage outputs instead of a classifier, optional output
norms (which the authors also added for segmentation), freezing and activation checkpointing.

The paper's text and its published weights disagree in two places. This code follows the weights:
- The mixer's channels are ordered (identity, square, width, height); Algorithm 1 prints the identity last.
- Atto's second stage has 80 channels; Table 3 prints 90.

The rows of the ablation (Table 8) and of the isotropic model (Table 5) are arguments. Their code was never released, so
these points are inferred:
- If a branch is left out, its channels go to the identity.
- With bands in sequence, the vertical band follows the horizontal one on one band's share of the channels. This has as
  many parameters as side by side, and about the speed that Table 8 prints.
- The isotropic S (22 M parameters, 4.2 G MACs) has ConvNeXt's isotropic form, a 16 x 16 patch embedding and 18 blocks
  of 384 channels at stride 16, with MLP ratio 4 and tiny's mixer: 21.6 M here, 22.0 M with a linear classifier.
  ``InceptionNeXt(dict(dims=(384,), depths=(18,), mlp_ratios=(4,), patch_size=16), out_indices=(0,))``.

Shapes: N batch, C channels, H and W height and width of a map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn

from backbones.base import StagedBackbone, check_out_indices, drop_path_rates, resolve_arch
from backbones.fast.lean_mlp import can_be_lean
from backbones.fast.lean_mlp import lean_mlp as compute_lean_mlp
from backbones.layers import Stage, build_norm, init_layer

# Branch -> name of its convolution in checkpoints, in channel order.
_CONVS: Mapping[str, str] = {'square': 'dwconv_hw', 'horizontal': 'dwconv_w', 'vertical': 'dwconv_h'}


@dataclass(frozen=True)
class InceptionNeXtArch:
    """One column of Table 3.

    Attributes:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratios: Hidden channels of the MLP divided by the channels, for each stage.
        band_kernel: Length of the 1 x k and k x 1 depthwise kernels, odd.
        square_kernel: Side of the square depthwise kernel, odd.
        branch_ratio: Share of the channels that each convolution branch takes, in (0, 1 / number of branches].
        branches: One or more of ``square``, ``horizontal`` (1 x k) and ``vertical`` (k x 1).
        sequential_bands: Apply the vertical band after the horizontal one on the same channels: one branch for both.
        patch_size: Side and stride of the first convolution.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 3)
    band_kernel: int = 11
    square_kernel: int = 3
    branch_ratio: float = 1 / 8
    branches: tuple[str, ...] = ('square', 'horizontal', 'vertical')
    sequential_bands: bool = False
    patch_size: int = 4

    def __post_init__(self) -> None:
        if not len(self.dims) == len(self.depths) == len(self.mlp_ratios):
            raise ValueError(
                f'dims={self.dims}, depths={self.depths} and mlp_ratios={self.mlp_ratios} differ in length.\n'
                'Give one value for each stage in all three.'
            )
        for name in ('band_kernel', 'square_kernel'):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(
                    f'{name}={getattr(self, name)}; allowed: odd numbers from 1.\n'
                    'An even kernel would shift and resize the map.'
                )
        if not self.branches or len(set(self.branches) & set(_CONVS)) != len(self.branches):
            raise ValueError(
                f'branches={self.branches}; allowed: {", ".join(_CONVS)}, each once.\nName at least one of them.'
            )
        if self.sequential_bands and not {'horizontal', 'vertical'} <= set(self.branches):
            raise ValueError(
                f'sequential_bands with branches={self.branches}; required: both horizontal and vertical.\n'
                'Name both, or leave sequential_bands out.'
            )
        num_shares = len(self.groups)
        if not (0 < self.branch_ratio <= 1 / num_shares and int(min(self.dims) * self.branch_ratio) > 0):
            raise ValueError(
                f'branch_ratio={self.branch_ratio} with dims={self.dims}; allowed: (0, 1/{num_shares}].\n'
                f'The branches share the channels; each needs at least one channel in every stage.'
            )

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """For each share of the channels, the names of its convolutions in the order in which they run."""
        convs = tuple(conv for branch, conv in _CONVS.items() if branch in self.branches)
        if not self.sequential_bands:
            return tuple((conv,) for conv in convs)
        return (*((conv,) for conv in convs[:-2]), convs[-2:])


class InceptionDWConv(nn.Module):
    """The token mixer: identity, square, 1 x k and k x 1 depthwise convolutions side by side (Section 3.2, Fig. 2).

    Args:
        dim: Channels C.
        arch: Kernels, branches and their share of the channels.
    """

    def __init__(self, dim: int, arch: InceptionNeXtArch) -> None:
        super().__init__()
        width = int(dim * arch.branch_ratio)
        kernels = {
            'dwconv_hw': (arch.square_kernel, arch.square_kernel),
            'dwconv_w': (1, arch.band_kernel),
            'dwconv_h': (arch.band_kernel, 1),
        }
        for name in (name for group in arch.groups for name in group):
            height, length = kernels[name]
            conv = nn.Conv2d(width, width, (height, length), padding=(height // 2, length // 2), groups=width)
            self.add_module(name, conv)
        self.groups = arch.groups
        self.split_sizes = (dim - len(arch.groups) * width, *(width for _ in arch.groups))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        identity, *shares = torch.split(x, self.split_sizes, dim=1)
        return torch.cat((identity, *(self._convolve(*pair) for pair in zip(shares, self.groups, strict=True))), dim=1)

    def _convolve(self, share: Tensor, names: tuple[str, ...]) -> Tensor:
        for name in names:
            share = getattr(self, name)(share)
        return share


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

    Attributes:
        lean_mlp: Recompute the MLP's hidden map in the backward pass instead of storing it. A modified MLP (other
            layers or activation, adapters, hooks) runs layer by layer.
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
        self.lean_mlp = False

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        branch = self.norm(self.token_mixer(x))
        if self.lean_mlp and can_be_lean(self.mlp, ConvMlp):
            branch = compute_lean_mlp(branch, fc1=self.mlp.fc1, fc2=self.mlp.fc2, gamma=self.gamma)
        else:
            branch = self.mlp(branch)
            if self.gamma is not None:
                branch = branch * self.gamma.view(1, -1, 1, 1)
        return self.drop_path(branch) + x


@MODELS.register_module()
class InceptionNeXt(StagedBackbone):
    """InceptionNeXt that returns the maps of its stages, at strides 4, 8, 16 and 32.

    The rows of Table 8 are ``InceptionNeXt('tiny', band_kernel=7)``, ``branch_ratio=1 / 16``,
    ``branches=('square', 'vertical')``, ``sequential_bands=True``, ``norm_cfg=dict(type='LN')``.

    Args:
        arch: A name in :attr:`ARCHS`, or a dict with the fields of :class:`InceptionNeXtArch`.
        band_kernel, branch_ratio, branches, sequential_bands: Override the arch's values, see
            :class:`InceptionNeXtArch`; None keeps them. Published weights fit the unchanged archs. With
            ``sequential_bands`` they also fit by name and shape, but were not trained for it.
        in_channels: Channels of the images, at least 1.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); grows linearly from 0 in the first block.
        layer_scale_init_value: Initial layer scale; the published value is 1e-6. None or 0 leaves layer scale out.
        norm_cfg: Norm inside the network; published weights need ``BN`` (or ``SyncBN``).
        out_indices, out_norm, frozen_stages, norm_eval, with_cp, lean_mlp, init_cfg: See
            :class:`backbones.base.StagedBackbone`.

    Raises:
        ValueError: An argument is invalid; the message names it and what is allowed.
    """

    # Table 3, corrected by the published code; parameters with the classifier: 4.2, 28.1, 49.4, 86.7 M.
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
        band_kernel: int | None = None,
        branch_ratio: float | None = None,
        branches: Sequence[str] | None = None,
        sequential_bands: bool | None = None,
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
        changes: dict[str, Any] = dict(
            band_kernel=band_kernel,
            branch_ratio=branch_ratio,
            branches=None if branches is None else tuple(branches),
            sequential_bands=sequential_bands,
        )
        spec = resolve_arch(arch, self.ARCHS)
        spec = replace(spec, **{field: value for field, value in changes.items() if value is not None})
        indices = check_out_indices(out_indices, len(spec.dims))
        rates = drop_path_rates(drop_path_rate, spec.depths)
        norm_cfg = norm_cfg or dict(type='BN')
        super().__init__(
            stem=nn.Sequential(
                nn.Conv2d(in_channels, spec.dims[0], kernel_size=spec.patch_size, stride=spec.patch_size),
                build_norm(norm_cfg, spec.dims[0]),
            ),
            stages=[_build_stage(spec, i, rates[i], norm_cfg, layer_scale_init_value) for i in range(indices[-1] + 1)],
            dims=spec.dims,
            strides=[spec.patch_size * 2**i for i in range(len(spec.dims))],
            out_indices=indices,
            out_norm=out_norm,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            with_cp=with_cp,
            lean_mlp=lean_mlp,
            init_cfg=init_cfg,
        )
        self.apply(init_layer)


def _build_stage(
    arch: InceptionNeXtArch,
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
        MetaNeXtBlock(
            token_mixer=InceptionDWConv(dim, arch),
            norm=build_norm(norm_cfg, dim),
            mlp=ConvMlp(dim, int(arch.mlp_ratios[index] * dim)),
            dim=dim,
            drop_path=drop_path,
            layer_scale_init_value=layer_scale_init_value,
        )
        for drop_path in drop_paths
    ]
    return Stage(downsample, blocks)
