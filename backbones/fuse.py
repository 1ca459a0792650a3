"""Rewriting of models for inference: :func:`fuse`.

Norms with fixed statistics and layer scales are constant factors and offsets, so they are folded into the neighbouring
weights. Drop path, which does nothing in inference, is removed. Convolutions of backbones use the channels-last format.
Each block becomes a :class:`backbones.fast.fused_block.FusedBlock`. Large 3 x 3 convolutions, in heads too, use
Winograd's algorithm (:mod:`backbones.fast.winograd`). Nothing is approximated: outputs differ only by rounding. A layer
with something attached to it (hooks, adapters, parametrizations), or of a class whose function is not known here, stays
unchanged, and so does its block.
"""

import copy
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import NamedTuple, TypeVar

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backbones.base import StagedBackbone
from backbones.convnext import ConvNeXtBlock, PartialDWConv
from backbones.fast.fused_block import FusedBlock, FusedLinear, RowNorm
from backbones.fast.gradients import refuse_gradients
from backbones.fast.plain_layers import has_forward_of, is_constant_batch_norm, is_linear, is_plain, is_plain_mlp
from backbones.fast.winograd import use_winograd
from backbones.fasternet import FasterNetBlock, PartialConv
from backbones.inceptionnext import ConvMlp, InceptionDWConv, MetaNeXtBlock
from backbones.layers import Stage

ModelT = TypeVar('ModelT', bound=nn.Module)

_MIXERS = (InceptionDWConv, PartialConv, PartialDWConv, nn.Conv2d)  # each returns a new map, which nobody else holds
_ELEMENTWISE = (nn.GELU, nn.ReLU, nn.SiLU, nn.Mish, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
_OFF_IN_EVALUATION = (nn.Identity, DropPath, nn.Dropout)


def fuse(model: ModelT, *, rewrites: Sequence[Callable[[nn.Module], None]] = ()) -> ModelT:
    """Rewrite a model for inference: same outputs up to rounding, less time and memory.

    It rewrites every backbone of this package, even inside a detector, a segmentor or any other module, and every 3 x 3
    convolution that is faster with Winograd's algorithm. Unknown parts stay unchanged, and so does ``model`` itself.

    Args:
        model: In evaluation mode.
        rewrites: Functions that rewrite parts that this package does not know. Each changes a model in place, without
            gradients. :func:`dense.export.fuse_mmcv.fuse_model` passes the ones for MMDetection and MMSegmentation.

    Returns:
        A copy in evaluation mode whose parameters take no gradient. Calling it raises an error if a gradient would be
        needed. Its state dict can be saved and loaded into another fused copy of the same model.

    Raises:
        ValueError: The model is in training mode: its batch norms have no fixed statistics.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        part = f'{training!r} of the model' if training else 'the model'
        raise ValueError(f'{part} is in training mode; only evaluation mode can be fused.\nCall model.eval() first.')
    fused = copy.deepcopy(model, _copies_of_results(model))
    backbones = [module for module in fused.modules() if isinstance(module, StagedBackbone)]
    with torch.no_grad():
        for backbone in backbones:
            _fuse_backbone(backbone)
        for rewrite in rewrites:
            rewrite(fused)
        use_winograd(fused, for_inference=True)
    for module in {fused, *backbones}:
        module.register_forward_pre_hook(refuse_gradients, with_kwargs=True)
    return fused.requires_grad_(False).eval()


def _copies_of_results(model: nn.Module) -> dict[int, Tensor]:
    """Return copies, by ``id``, of tensors that PyTorch refuses to copy: weights computed by pruning or weight norm."""
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and not value.is_leaf}


def _fuse_backbone(backbone: StagedBackbone) -> None:
    is_known = type(backbone).forward_stages is StagedBackbone.forward_stages
    if not (is_known and has_forward_of(backbone, StagedBackbone)):
        return  # a subclass may use the parts in another way
    backbone.stem = nn.Sequential(_ChannelsLast(), _fuse_chain(backbone.stem))
    for stage in backbone.stages:
        if not has_forward_of(stage, Stage):
            continue
        stage.downsample = _fuse_chain(stage.downsample)
        if is_plain(stage.blocks, nn.Sequential):
            stage.blocks = nn.Sequential(*(_fuse_block(block) for block in stage.blocks))
        stage.with_cp = False
    backbone.to(memory_format=torch.channels_last)


class _ChannelsLast(nn.Module):
    """Converts the images to the channels-last format that the following layers use."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return x.contiguous(memory_format=torch.channels_last)


def _fuse_chain(chain: nn.Module) -> nn.Module:
    """Replace a stem or downsampling, ``(convolution, norm)`` or ``(norm, convolution)``, by one convolution."""
    if not is_plain(chain, nn.Sequential) or len(chain) != 2:
        return chain
    first, second = chain
    if is_plain(first, nn.Conv2d) and is_constant_batch_norm(second):
        return fuse_conv_bn_eval(first, second)
    # Padding is not normalised: after a norm, it would have to be a different number in each channel.
    is_unpadded = is_plain(second, nn.Conv2d) and second.padding == (0, 0) and second.groups == 1
    if is_constant_batch_norm(first) and is_unpadded:
        return _absorb(second, *_affine(first))
    return chain


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return factor and offset ``(C,)`` of a batch norm."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    offset = -norm.running_mean * factor
    return factor, offset if norm.bias is None else offset + norm.bias


def _absorb(conv: nn.Conv2d, factor: Tensor, offset: Tensor) -> nn.Conv2d:
    """Return a convolution whose output for ``x`` equals that of ``conv`` for ``factor * x + offset``, per channel."""
    weight = conv.weight * factor.view(1, -1, 1, 1)
    bias = torch.einsum('oihw,i->o', conv.weight, offset)
    conv.bias = nn.Parameter(bias if conv.bias is None else bias + conv.bias)
    conv.weight = nn.Parameter(weight)
    return conv


class _Mlp(NamedTuple):
    """The two products of a block, as weights ``(D, C)`` and ``(C, D)`` and biases."""

    weight1: Tensor
    bias1: Tensor | None
    act: nn.Module
    weight2: Tensor
    bias2: Tensor | None


@singledispatch
def _fuse_block(block: nn.Module) -> nn.Module:
    return block


@_fuse_block.register
def _(block: MetaNeXtBlock) -> nn.Module:
    if not (_is_fusible(block, MetaNeXtBlock, block.token_mixer) and is_plain_mlp(block.mlp, ConvMlp)):
        return block
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    mlp = _Mlp(fc1.weight.flatten(1), fc1.bias, block.mlp.act, fc2.weight.flatten(1), fc2.bias)
    return _fused_block(block.token_mixer, block.norm, mlp, block.gamma) or block


@_fuse_block.register
def _(block: ConvNeXtBlock) -> nn.Module:
    if not (_is_fusible(block, ConvNeXtBlock, block.conv_dw) and is_plain_mlp(block.mlp, Mlp)):
        return block
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    mlp = _Mlp(fc1.weight.flatten(1), fc1.bias, block.mlp.act, fc2.weight.flatten(1), fc2.bias)
    return _fused_block(block.conv_dw, block.norm, mlp, block.gamma) or block


@_fuse_block.register
def _(block: FasterNetBlock) -> nn.Module:
    is_fusible = _is_fusible(block, FasterNetBlock, block.spatial_mixing)
    if not (is_fusible and is_plain(block.mlp, nn.Sequential) and len(block.mlp) == 4):
        return block
    conv1, norm, act, conv2 = block.mlp
    if not (is_constant_batch_norm(norm) and is_linear(conv1) and is_linear(conv2)):
        return block
    conv1 = fuse_conv_bn_eval(conv1, norm)
    mlp = _Mlp(conv1.weight.flatten(1), conv1.bias, act, conv2.weight.flatten(1), conv2.bias)
    return _fused_block(block.spatial_mixing, nn.Identity(), mlp, block.gamma) or block


def _is_fusible(block: nn.Module, kind: type[nn.Module], mixer: nn.Module) -> bool:
    return is_plain(block, kind) and is_plain(mixer, *_MIXERS) and is_plain(block.drop_path, *_OFF_IN_EVALUATION)


def _fused_block(mixer: nn.Module, norm: nn.Module, mlp: _Mlp, gamma: Tensor | None) -> FusedBlock | None:
    """Return the inference form of a block, or None if the function of the norm or of the activation is unknown."""
    row_norm: nn.Module = nn.Identity()
    weight1, bias1, act, weight2, bias2 = mlp
    factor = offset = None
    if is_plain(norm, LayerNorm2d):
        row_norm, factor, offset = RowNorm(norm.eps), norm.weight, norm.bias
    elif is_constant_batch_norm(norm):
        factor, offset = _affine(norm)
    elif is_plain(norm, nn.GroupNorm):
        mixer = nn.Sequential(mixer, norm)
    elif not is_plain(norm, nn.Identity):
        return None
    if not is_plain(act, *_ELEMENTWISE):
        return None
    if offset is not None:
        bias1 = weight1 @ offset if bias1 is None else bias1 + weight1 @ offset
    if factor is not None:
        weight1 = weight1 * factor
    if gamma is not None:
        weight2 = weight2 * gamma.view(-1, 1)
        bias2 = None if bias2 is None else bias2 * gamma
    fc1, fc2 = FusedLinear(weight1, bias1), FusedLinear(weight2, bias2)
    return FusedBlock(mixer=mixer, row_norm=row_norm, fc1=fc1, act=act, fc2=fc2, is_scaled=gamma is not None)
