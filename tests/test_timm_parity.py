"""Are these the same networks as timm's, an independent implementation of the same papers?"""

import pytest
import timm
import torch
from product import FAMILIES, in_timm
from torch import nn

import backbones
from backbones import FasterNet, InceptionNeXt

CASES = [(getattr(backbones, family), arch, name) for (family, arch), name in sorted(in_timm().items())]
# The same code at another size: seconds each.
LARGE = [case for case in CASES if case[1] in ('small', 'base', 'm', 'l')]
every_case = pytest.mark.parametrize(('family', 'arch', 'timm_name'), CASES, ids=[case[2] for case in CASES])

# Published, with the classifier (facts of the released code): total and backbone alone.
PARAMETERS = {
    'inception_next_atto': (4_156_520, 2_885_440),
    'inception_next_tiny': (28_055_680, 23_974_296),
    'inception_next_small': (49_374_016, 45_292_632),
    'inception_next_base': (86_672_136, 80_444_192),
    'fasternet_t0': (3_905_500, 2_214_900),
    'fasternet_t1': (7_595_368, 5_659_008),
    'fasternet_t2': (14_982_888, 12_718_848),
    'fasternet_s': (31_181_032, 28_589_312),
    'fasternet_m': (53_521_464, 50_765_904),
    'fasternet_l': (93_465_192, 90_218_112),
    'convnext_tiny': (28_589_128, 27_818_592),
    'convnext_small': (50_223_688, 49_453_152),
    'convnext_base': (88_591_464, 87_564_416),
}


def test_every_family_is_compared_and_its_size_known():
    assert {family for family, _, _ in CASES} == set(FAMILIES)
    assert {name for _, _, name in CASES} == set(PARAMETERS)


def random_timm_model(name: str, seed: int = 0) -> nn.Module:
    """A timm model in which no part is near to doing nothing: random norms, statistics and layer scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device('meta'):  # its own initialisation would take seconds
        model = timm.create_model(name, drop_path_rate=0)
    model.to_empty(device='cpu')
    for key, tensor in model.state_dict().items():
        if key.endswith('num_batches_tracked'):
            tensor.zero_()
        elif key.endswith(('running_var', 'gamma')) or (tensor.ndim == 1 and key.endswith('weight')):
            tensor.uniform_(0.25, 0.75, generator=generator)
        elif key.endswith(('running_mean', 'bias')):
            tensor.normal_(0, 0.1, generator=generator)
        else:
            tensor.normal_(0, 0.02, generator=generator)
    return model


def paired(family, arch: str, timm_name: str) -> tuple[nn.Module, nn.Module]:
    """Ours with the weights of theirs: whole, converted, without a file (files are read in other tests)."""
    theirs = random_timm_model(timm_name)
    with torch.device('meta'):
        ours = family(arch)
    state = ours.convert_state_dict(theirs.state_dict())
    ours.load_state_dict(
        {name: value.clone() for name, value in state.items() if not ours.leaves_out(name)}, strict=True, assign=True
    )
    return ours, theirs


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@every_case
def test_features_of_every_stage_agree(family, arch, timm_name):
    ours, theirs = paired(family, arch, timm_name)
    x = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = ours.eval()(x)
        expected = theirs.eval().forward_intermediates(x, intermediates_only=True)
    assert len(got) == len(expected) == 4
    assert max(relative_error(a, b) for a, b in zip(got, expected, strict=True)) < 1e-5


@pytest.mark.parametrize(
    ('family', 'arch', 'timm_name'),
    [pytest.param(*case, id=case[2], marks=[pytest.mark.slow] if case in LARGE else []) for case in CASES],
)
def test_gradients_and_statistics_agree_in_training(family, arch, timm_name):
    ours, theirs = paired(family, arch, timm_name)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    sum(out.square().mean() for out in ours.train()(x)).backward()
    sum(out.square().mean() for out in theirs.train().forward_intermediates(x, intermediates_only=True)).backward()
    expected = family.convert_state_dict({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    # A bias before a batch norm has no effect: its gradient is rounding noise in both.
    floor = 1e-6 * max(p.grad.abs().max() for p in ours.parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=floor.item(), msg=name)
        compared += 1
    assert compared == len(list(ours.parameters())) > 70
    buffers = family.convert_state_dict(dict(theirs.named_buffers()))
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-5, atol=1e-6, msg=name)


@every_case
def test_parameter_counts_are_the_published_ones(family, arch, timm_name):
    total, backbone_only = PARAMETERS[timm_name]
    with torch.device('meta'):
        assert sum(p.numel() for p in timm.create_model(timm_name).parameters()) == total
        assert sum(p.numel() for p in family(arch).parameters()) == backbone_only


def test_the_mixer_is_identity_square_width_height():
    """Written from the definition: which channels each branch of the mixer sees, and along which axis."""
    mixer = InceptionNeXt('atto').stages[0].blocks[0].token_mixer
    with torch.no_grad():
        for conv in (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h):
            conv.weight.fill_(1)
            conv.bias.zero_()
    x = torch.zeros(1, 40, 21, 21)
    x[:, :, 10, 10] = 1
    with torch.no_grad():
        response = mixer(x)[0]
    spread = [(int((row.amax(1) > 0).sum()), int((row.amax(0) > 0).sum())) for row in response]
    assert spread == [(1, 1)] * 10 + [(3, 3)] * 10 + [(1, 9)] * 10 + [(9, 1)] * 10


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('arch', FasterNet.ARCHS)
def test_the_partial_convolution_sees_the_first_quarter_and_keeps_its_input(arch, training):
    """Written from the definition: the convolution's answer must never end up in the shortcut."""
    block = FasterNet(arch, out_indices=(0,)).stages[0].blocks[0].train(training)
    dim = FasterNet.ARCHS[arch].dims[0]
    x = torch.randn(2, dim, 9, 11, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with torch.no_grad():
        mixed = block.spatial_mixing(x)
        expected = nn.functional.conv2d(before[:, : dim // 4], block.spatial_mixing.partial_conv3.weight, padding=1)
        block(x)
    assert torch.equal(x, before)
    assert torch.equal(mixed[:, dim // 4 :], before[:, dim // 4 :])
    torch.testing.assert_close(mixed[:, : dim // 4], expected)
    assert mixed.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
