"""Are the rows of the papers' ablations and InceptionNeXt's isotropic model what the papers say?"""

import inspect
from dataclasses import fields
from itertools import pairwise

import pytest
import timm
import torch
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backbones import FasterNet, InceptionNeXt
from backbones.serialization import CheckpointError

ISOTROPIC = dict(arch=dict(dims=(384,), depths=(18,), mlp_ratios=(4,), patch_size=16), out_indices=(0,))
WITHOUT_HORIZONTAL = dict(branches=('square', 'vertical'))
WITHOUT_VERTICAL = dict(branches=('square', 'horizontal'))
WITHOUT_SQUARE = dict(branches=('horizontal', 'vertical'))

# Row of InceptionNeXt's Table 8 -> arguments.
ROWS = {
    'baseline': {},
    'no horizontal band': WITHOUT_HORIZONTAL,
    'no vertical band': WITHOUT_VERTICAL,
    'no square': WITHOUT_SQUARE,
    'bands in sequence': dict(sequential_bands=True),
    'band 7': dict(band_kernel=7),
    'band 9': dict(band_kernel=9),
    'band 13': dict(band_kernel=13),
    'ratio 1/4': dict(branch_ratio=1 / 4),
    'ratio 1/16': dict(branch_ratio=1 / 16),
    'LN': dict(norm_cfg=dict(type='LN')),
}
every_row = pytest.mark.parametrize('row', ROWS)


def test_every_change_is_tested():
    """Whatever InceptionNeXt can change of its arch, and the norm, is changed by a row."""
    asked = set(inspect.signature(InceptionNeXt).parameters)
    changes = asked & {field.name for field in fields(InceptionNeXt.ARCHS['tiny'])} | {'norm_cfg'}
    assert {argument for row in ROWS.values() for argument in row} == changes
    assert set(COUNTS) == set(ROWS) and set(CHANNELS) == set(ROWS)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(**arguments) -> InceptionNeXt:
    with torch.device('meta'):
        return InceptionNeXt(**arguments)


def definition(
    dims, depths, mlp_ratios, *, kernel=11, ratio=1 / 8, square=True, horizontal=True, vertical=True, patch=4
) -> int:
    """Parameters, added up from Section 3 of the paper: a batch or layer norm has two per channel."""
    total = 3 * patch**2 * dims[0] + dims[0] + 2 * dims[0]
    for previous, dim in pairwise(dims):
        total += 2 * previous + 2 * 2 * previous * dim + dim
    for dim, depth, mlp_ratio in zip(dims, depths, mlp_ratios, strict=True):
        width, hidden = int(dim * ratio), mlp_ratio * dim
        mixer = width * (square * (9 + 1) + horizontal * (kernel + 1) + vertical * (kernel + 1))
        mlp = dim * hidden + hidden + hidden * dim + dim
        total += depth * (mixer + 2 * dim + mlp + dim)
    return total


TINY = ((96, 192, 384, 768), (3, 3, 9, 3), (4, 4, 4, 3))
COUNTS = {
    'baseline': definition(*TINY),
    'no horizontal band': definition(*TINY, horizontal=False),
    'no vertical band': definition(*TINY, vertical=False),
    'no square': definition(*TINY, square=False),
    'bands in sequence': definition(*TINY),
    'band 7': definition(*TINY, kernel=7),
    'band 9': definition(*TINY, kernel=9),
    'band 13': definition(*TINY, kernel=13),
    'ratio 1/4': definition(*TINY, ratio=1 / 4),
    'ratio 1/16': definition(*TINY, ratio=1 / 16),
    'LN': definition(*TINY),
}


@every_row
def test_parameters_of_the_row(row):
    assert count(on_meta(arch='tiny', **ROWS[row])) == COUNTS[row]


def test_the_definition_counts_what_is_published():
    assert COUNTS['baseline'] == 23_974_296
    # What a port with the wrong ratio of 1/4 counts for the whole classifiers, less their heads.
    assert COUNTS['ratio 1/4'] == 28_083_832 - 4_081_384
    deeper, wider = (3, 3, 27, 3), (128, 256, 512, 1024)
    assert definition(TINY[0], deeper, TINY[2], ratio=1 / 4) == 49_431_544 - 4_081_384
    assert definition(wider, deeper, TINY[2], ratio=1 / 4) == 86_748_840 - 6_227_944


# Row -> number of channels of 96 and size of what one pixel spreads to, in the order of the channels.
CHANNELS = {
    'baseline': [(60, 1, 1), (12, 3, 3), (12, 1, 11), (12, 11, 1)],
    'no horizontal band': [(72, 1, 1), (12, 3, 3), (12, 11, 1)],
    'no vertical band': [(72, 1, 1), (12, 3, 3), (12, 1, 11)],
    'no square': [(72, 1, 1), (12, 1, 11), (12, 11, 1)],
    'bands in sequence': [(72, 1, 1), (12, 3, 3), (12, 11, 11)],
    'band 7': [(60, 1, 1), (12, 3, 3), (12, 1, 7), (12, 7, 1)],
    'band 9': [(60, 1, 1), (12, 3, 3), (12, 1, 9), (12, 9, 1)],
    'band 13': [(60, 1, 1), (12, 3, 3), (12, 1, 13), (12, 13, 1)],
    'ratio 1/4': [(24, 1, 1), (24, 3, 3), (24, 1, 11), (24, 11, 1)],
    'ratio 1/16': [(78, 1, 1), (6, 3, 3), (6, 1, 11), (6, 11, 1)],
    'LN': [(60, 1, 1), (12, 3, 3), (12, 1, 11), (12, 11, 1)],
}


def first_mixer(**arguments) -> nn.Module:
    """The mixer of the first block of tiny with positive weights and no biases."""
    model = InceptionNeXt(dict(dims=(96,), depths=(1,), mlp_ratios=(4,)), out_indices=(0,), **arguments)
    mixer = model.stages[0].blocks[0].token_mixer
    with torch.no_grad():
        for conv in mixer.children():
            conv.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(conv.kernel_size[0]))
            conv.bias.zero_()
    return mixer


def spread_of_a_pixel(mixer: nn.Module) -> torch.Tensor:
    """Answer ``(96, 31, 31)`` to a 1 in the middle of every channel."""
    x = torch.zeros(1, 96, 31, 31)
    x[:, :, 15, 15] = 1
    with torch.no_grad():
        return mixer(x)[0]


@every_row
def test_which_channels_are_convolved_and_how_far(row):
    response = spread_of_a_pixel(first_mixer(**ROWS[row]))
    spread = [(int((channel.amax(1) > 0).sum()), int((channel.amax(0) > 0).sum())) for channel in response]
    assert spread == [size for number, *size in CHANNELS[row] for size in [tuple(size)] * number]
    identity = CHANNELS[row][0][0]
    assert (response[:identity, 15, 15] == 1).all()


def test_bands_in_sequence_are_one_after_the_other():
    """One pixel through 1 x k, then k x 1: the outer product of the two kernels, which convolution mirrors."""
    mixer = first_mixer(sequential_bands=True)
    horizontal, vertical = mixer.dwconv_w.weight[:, 0, 0].flip(1), mixer.dwconv_h.weight[:, 0, :, 0].flip(1)
    response = spread_of_a_pixel(mixer)[84:, 10:21, 10:21]
    torch.testing.assert_close(response, vertical.detach()[:, :, None] * horizontal.detach()[:, None, :])


def test_the_vertical_band_comes_after_the_horizontal_one():
    mixer = first_mixer(sequential_bands=True)
    with torch.no_grad():
        mixer.dwconv_w.bias.fill_(1)
        mixer.dwconv_h.weight.zero_()
        mixer.dwconv_h.bias.fill_(7)
    assert (spread_of_a_pixel(mixer)[84:] == 7).all()  # whatever the horizontal one adds


@every_row
def test_every_row_learns_whole(row):
    model = InceptionNeXt('atto', layer_scale_init_value=0.5, **ROWS[row]).train()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    # A linear function of the maps: the mean of a normalised map's square would not depend on the weights before it.
    outs = model(x)
    sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outs).backward()
    assert [tuple(out.shape) for out in outs] == [(2, 40 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not [name for name, p in model.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0]


def test_layer_norm_replaces_every_batch_norm():
    model = on_meta(arch='tiny', **ROWS['LN'])
    norms = [module for module in model.modules() if isinstance(module, LayerNorm2d)]
    assert len(norms) == 1 + 3 + 18  # stem, downsamplings, blocks
    assert not [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_a_config_names_the_arch_and_the_change():
    with torch.device('meta'):
        model = MODELS.build(dict(type='InceptionNeXt', arch='tiny', branches=['square', 'vertical'], band_kernel=7))
    assert count(model) == definition(*TINY, kernel=7, horizontal=False)


def test_the_isotropic_model_is_of_the_published_size():
    """22 M parameters and 4.2 G MACs at 224 x 224 (Table 5), a linear classifier included."""
    model = on_meta(**ISOTROPIC).eval()
    assert count(model) == definition((384,), (18,), (4,), patch=16)
    assert round((count(model) + 384 * 1000 + 1000) / 1e6, 1) == 22.0
    with FlopCounterMode(display=False) as counter:
        (out,) = model(torch.empty(1, 3, 224, 224, device='meta'))
    assert round(counter.get_total_flops() / 2e9, 1) == 4.2
    assert out.shape == (1, 384, 14, 14)


def test_the_isotropic_model_keeps_the_promises_of_a_backbone():
    model = InceptionNeXt(**ISOTROPIC, out_norm=dict(type='BN'), drop_path_rate=0.1, frozen_stages=0).train()
    (out,) = model(torch.randn(2, 3, 65, 97))
    assert out.shape == (2, 384, 4, 6)
    assert (model.out_channels, model.out_strides) == ((384,), (16,))
    assert model.get_layer_depth('stages.0.blocks.17.gamma') == (18, 20)
    assert not model.stem[0].weight.requires_grad


BAD_ARGUMENTS = [
    (dict(band_kernel=8), 'band_kernel=8; allowed: odd'),
    (dict(band_kernel=0), 'band_kernel=0; allowed: odd'),
    (dict(branches=()), 'allowed: square, horizontal, vertical'),
    (dict(branches=('square', 'diagonal')), 'diagonal.*allowed: square'),
    (dict(branches=('square', 'square')), 'each once'),
    (dict(branch_ratio=0.4), r'0\.4 .*allowed: \(0, 1/3\]'),
    (dict(branch_ratio=0.6, sequential_bands=True), r'0\.6 .*allowed: \(0, 1/2\]'),
    (dict(branch_ratio=0.001), r'0\.001 with dims=\(96'),
    (dict(sequential_bands=True, branches=('square', 'vertical')), 'required: both'),
]


@pytest.mark.parametrize(('arguments', 'message'), BAD_ARGUMENTS, ids=[str(case[0]) for case in BAD_ARGUMENTS])
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        on_meta(arch='tiny', **arguments)
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy


@pytest.mark.parametrize('row', ['no square', 'band 7', 'ratio 1/16'])
def test_published_weights_are_refused_by_a_changed_network(row, tmp_path):
    torch.save(timm.create_model('inception_next_atto').state_dict(), tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    with pytest.raises(CheckpointError, match="fits arch 'atto' as published"):
        InceptionNeXt('atto', init_cfg=init_cfg, **ROWS[row]).init_weights()


# Row of FasterNet's ablation on T0 -> arguments, and share of the channels that is convolved.
T0 = dict(dims=(40, 80, 160, 320), depths=(1, 2, 8, 2), act='GELU')
FASTERNET_ROWS = {
    'baseline': (dict(arch='t0'), 1 / 4),
    'partial ratio 1/2': (dict(arch=dict(T0, partial_ratio=1 / 2)), 1 / 2),
    'partial ratio 1/8': (dict(arch=dict(T0, partial_ratio=1 / 8)), 1 / 8),
    'LN': (dict(arch='t0', norm_cfg=dict(type='LN')), 1 / 4),
}


def fasternet_definition(ratio: float) -> int:
    """Parameters, added up from Section 3 of the paper; no convolution has a bias."""
    dims, depths = T0['dims'], T0['depths']
    total = 3 * 4**2 * dims[0] + 2 * dims[0] + sum(2**2 * a * b + 2 * b for a, b in pairwise(dims))
    for dim, depth in zip(dims, depths, strict=True):
        total += depth * (9 * int(dim * ratio) ** 2 + 2 * dim * dim + 2 * 2 * dim + 2 * dim * dim)
    return total


@pytest.mark.parametrize('row', FASTERNET_ROWS)
def test_parameters_of_fasternets_row(row):
    arguments, ratio = FASTERNET_ROWS[row]
    with torch.device('meta'):
        assert count(FasterNet(**arguments)) == fasternet_definition(ratio)


def test_the_definition_of_fasternet_counts_what_is_published():
    assert fasternet_definition(1 / 4) == 2_214_900


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(act='Swish'), 'Swish.*GELU, ReLU'),
        (dict(partial_ratio=0), r'partial_ratio=0 .*\(0, 1\]'),
        (dict(partial_ratio=1 / 64), 'dims=.40'),
        (dict(depths=(1, 2)), 'differ in length'),
    ],
    ids=str,
)
def test_bad_fields_of_fasternet_say_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        FasterNet(dict(T0, **change))
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
