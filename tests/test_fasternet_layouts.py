"""Does FasterNet read the authors' checkpoints, timm's and its own?"""

import pytest
import timm
import torch
from published import official_fasternet

from backbones import FasterNet
from backbones.serialization import CheckpointError
from backbones.weights import load_pretrained

HEADS = FasterNet.CLASSIFIER_PREFIXES


def test_the_official_layout_of_fasternet_is_the_one_of_the_release():
    """Spot checks of the helper's names; the number of tensors is that of timm's model."""
    state = official_fasternet('t0')
    assert {key.split('.')[1] for key in state if key.startswith('stages.')} == set('0123456')
    expected = {
        'patch_embed.proj.weight': (40, 3, 4, 4),
        'stages.0.blocks.0.spatial_mixing.partial_conv3.weight': (10, 10, 3, 3),
        'stages.1.reduction.weight': (80, 40, 2, 2),
        'stages.1.norm.weight': (80,),
        'stages.6.blocks.1.mlp.3.weight': (320, 640, 1, 1),
        'avgpool_pre_head.1.weight': (1280, 320, 1, 1),
        'head.bias': (1000,),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert len(state) == 128 + 3


@pytest.mark.parametrize('arch', FasterNet.ARCHS)
def test_every_layout_of_fasternet_becomes_ours(arch):
    with torch.device('meta'):
        timms = timm.create_model(f'fasternet_{arch}').state_dict()
        ours = FasterNet(arch).state_dict()
    for state in (official_fasternet(arch, 'meta'), timms, ours):
        converted = FasterNet.convert_state_dict(state)
        shapes = {key: value.shape for key, value in converted.items() if not key.startswith(HEADS)}
        assert shapes == {key: value.shape for key, value in ours.items()}


def test_the_official_layout_of_fasternet_loads_whole(tmp_path):
    torch.manual_seed(0)
    state = official_fasternet('t0')
    torch.save(state, tmp_path / 'weights.pth')
    model = FasterNet('t0')
    report = load_pretrained(model, tmp_path / 'weights.pth')
    assert len(report.loaded) == report.total == 128
    assert sorted(report.left_out) == ['avgpool_pre_head.1.weight', 'head.bias', 'head.weight']
    torch.manual_seed(0)
    timms = timm.create_model('fasternet_t0').eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = timms.forward_intermediates(x, intermediates_only=True)
        for got, wanted in zip(model.eval()(x), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_detector_of_the_fasternet_authors_brings_its_output_norms(tmp_path):
    source = FasterNet('t0', out_norm=dict(type='BN'))
    torch.nn.init.uniform_(source.out_norm2.weight)
    flat = {key: value for key, value in official_fasternet('t0').items() if 'head.' not in key}
    norms = {
        f'norm{2 * int(key[8])}{key[9:]}': value
        for key, value in source.state_dict().items()
        if key.startswith('out_norm')
    }
    torch.save(
        {'state_dict': {f'backbone.{key}': value for key, value in {**flat, **norms}.items()}},
        tmp_path / 'detector.pth',
    )
    model = FasterNet('t0', out_norm=dict(type='BN'))
    report = load_pretrained(model, tmp_path / 'detector.pth')
    assert report.new == report.left_out == ()
    assert torch.equal(model.out_norm2.weight, source.out_norm2.weight)


@pytest.mark.parametrize('lost', ['stages.1.reduction.weight', 'stages.6.blocks.1.mlp.1.running_var'])
def test_an_official_fasternet_that_lacks_a_key_is_refused(lost, tmp_path):
    state = official_fasternet('t0')
    del state[lost]
    torch.save(state, tmp_path / 'weights.pth')
    model = FasterNet('t0')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match='1 missing: stages'):
        load_pretrained(model, tmp_path / 'weights.pth')
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
