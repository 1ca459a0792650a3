"""Do weights load strictly into networks of timm, and do timm's own come only when asked for?"""

import re
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm_nets import ARCHS, SMALL, SOME, build, images, random_weights
from torch import nn

from backbones import TimmBackbone
from backbones.serialization import CheckpointError
from backbones.weights import load_pretrained

every_arch = pytest.mark.parametrize('arch', ARCHS)
some_archs = pytest.mark.parametrize('arch', SOME)
small_arch = pytest.mark.parametrize('arch', SMALL)


@small_arch
def test_one_grey_channel_gives_what_three_equal_ones_give(arch, tmp_path):
    torch.save(random_weights(arch), tmp_path / 'timm.pth')
    color, grey = build(arch).eval(), build(arch, in_channels=1).eval()
    for backbone in (color, grey):
        report = load_pretrained(backbone, tmp_path / 'timm.pth')
    assert len(report.adapted) == 1 and report.adapted[0].endswith('.weight')
    x = images(64, 96, channels=1)
    with torch.no_grad():
        for ours, theirs in zip(grey(x), color(x.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    four = build(arch, in_channels=4)
    assert len(load_pretrained(four, tmp_path / 'timm.pth').adapted) == 1
    assert len(four(images(64, 96, channels=4))) == len(four.out_channels)


@every_arch
def test_every_tensor_is_loaded_and_the_rest_named(arch, tmp_path):
    state = random_weights(arch)
    safetensors.torch.save_file(state, tmp_path / 'timm.safetensors')
    backbone = build(arch, out_indices=(1,), out_norm=dict(type='BN'))
    report = load_pretrained(backbone, tmp_path / 'timm.safetensors')
    own = {name for name in backbone.state_dict() if not name.startswith('out_norm')}
    assert set(report.loaded) == own and report.total == len(own)
    assert {name.removeprefix('body.') for name in report.left_out} == set(state) - {n[5:] for n in own}
    assert len(report.left_out) >= 2 and len(report.new) == 5
    for name in own:
        assert torch.equal(backbone.state_dict()[name], state[name.removeprefix('body.')])


@small_arch
def test_weights_saved_in_a_model_load_again(arch, tmp_path):
    trained = build(arch, out_norm=dict(type='BN'))
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(1)
    state = {f'backbone.{name}': value for name, value in trained.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **{'decode_head.w': torch.zeros(1)})), tmp_path / 'model.pth')
    fresh = build(arch, out_norm=dict(type='BN'))
    assert load_pretrained(fresh, tmp_path / 'model.pth').new == ()
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    part = build(arch, out_indices=(0,), out_norm=dict(type='BN'))
    assert set(load_pretrained(part, tmp_path / 'model.pth').loaded) >= {
        name for name in part.state_dict() if name.startswith('body.')
    }


def test_layouts_that_timm_converts_are_converted(tmp_path):
    """The authors' names of ConvNeXt, made from timm's by the definition of both."""
    state = random_weights('convnext_atto')
    renames = [
        (r'stem\.', 'downsample_layers.0.'), (r'stages\.(\d)\.downsample', r'downsample_layers.\1'),
        (r'stages\.(\d)\.blocks\.(\d)', r'stages.\1.\2'), (r'head\.norm', 'norm'), (r'head\.fc', 'head'),
    ]  # fmt: skip
    authors = {}
    for key, value in state.items():
        for pattern, replacement in renames:
            key = re.sub(f'^{pattern}', replacement, key)
        key = key.replace('conv_dw', 'dwconv').replace('mlp.fc1', 'pwconv1').replace('mlp.fc2', 'pwconv2')
        authors[key] = value.flatten(1) if 'pwconv' in key and key.endswith('weight') else value
    torch.save({'model': authors}, tmp_path / 'authors.pth')
    backbone = build('convnext_atto')
    report = load_pretrained(backbone, tmp_path / 'authors.pth')
    assert report.total == len(report.loaded) > 100 and len(report.left_out) == 4
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name.removeprefix('body.')])


def test_position_embeddings_of_another_size_are_resampled_by_timm(tmp_path):
    torch.save(random_weights('test_vit'), tmp_path / 'timm.pth')
    backbone = TimmBackbone('test_vit', timm_options=dict(img_size=96))
    load_pretrained(backbone, tmp_path / 'timm.pth')
    expected = timm.create_model('test_vit', num_classes=0, img_size=96)
    timm.models.load_checkpoint(
        expected,
        str(tmp_path / 'timm.pth'),
        strict=False,
        filter_fn=timm.models.vision_transformer.checkpoint_filter_fn,
    )
    assert backbone.body.pos_embed.shape[1] == 6 * 6 + 1
    torch.testing.assert_close(backbone.body.pos_embed, expected.pos_embed, rtol=0, atol=0)


DAMAGES = {
    'missing': (lambda s: s.pop('layer1.0.conv1.weight'), r'1 missing: body\.layer1\.0\.conv1\.weight'),
    'unexpected': (lambda s: s.update(extra=torch.zeros(1)), r'1 unexpected: body\.extra'),
    'misshaped': (lambda s: s.update({'bn1.weight': torch.zeros(7)}), r'1 of another shape: body\.bn1\.weight \(7,\)'),
    'another network': (lambda s: (s.clear(), s.update(random_weights('test_vit'))), 'missing.*unexpected'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(damage, tmp_path):
    state = random_weights('test_resnet')
    change, message = DAMAGES[damage]
    change(state)
    torch.save(state, tmp_path / 'damaged.pth')
    backbone = build('test_resnet')
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(backbone, tmp_path / 'damaged.pth')
    assert len(str(caught.value).split('\n')) == 2 and 'nothing was loaded' in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_truncated_file_is_refused(tmp_path):
    torch.save(random_weights('test_resnet'), tmp_path / 'whole.pth')
    content = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match='not a readable checkpoint'):
        load_pretrained(build('test_resnet'), tmp_path / 'half.pth')


def test_timms_own_weights_come_only_when_asked_for(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError('asked for the network')

    monkeypatch.setattr('socket.getaddrinfo', no_network)
    build('test_resnet').init_weights()
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    backbone = build('test_resnet', init_cfg=dict(type='Pretrained', checkpoint='timm'))
    with pytest.raises(CheckpointError, match=r"timm cannot get its weights for 'test_resnet'") as caught:
        backbone.init_weights()
    assert len(str(caught.value).split('\n')) == 2 and '.safetensors' in str(caught.value)


def test_timms_own_weights_are_loaded_strictly(monkeypatch):
    state = random_weights('test_resnet')
    create = timm.create_model

    def published(arch: str, pretrained: bool = False, **options: Any) -> nn.Module:
        model = create(arch, **options)
        if pretrained:
            model.load_state_dict(state)
        return model

    monkeypatch.setattr('timm.create_model', published)
    backbone = build('test_resnet', init_cfg=dict(type='Pretrained', checkpoint='timm'))
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name.removeprefix('body.')])
