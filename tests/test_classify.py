"""Are the classifiers the published ones, and do they load published files whole?"""

import re

import pytest
import timm
import torch
from mmengine.registry import MODELS
from product import ARCHS, FAMILIES, in_timm, names_of
from torch import nn

import backbones
import dense.classify
from dense.classify.weights import own_state_dict
from dense.errors import UserError

HEADS = {'InceptionNeXt': 'InceptionNeXtHead', 'FasterNet': 'FasterNetHead', 'ConvNeXt': 'ConvNeXtHead'}
# Exact numbers of parameters, classifier included, as derived from the released codes (T/S/B of ConvNeXt: published).
PARAMETERS = {
    ('InceptionNeXt', 'atto'): 4_156_520,
    ('InceptionNeXt', 'tiny'): 28_055_680,
    ('InceptionNeXt', 'small'): 49_374_016,
    ('InceptionNeXt', 'base'): 86_672_136,
    ('FasterNet', 't0'): 3_905_500,
    ('FasterNet', 't1'): 7_595_368,
    ('FasterNet', 't2'): 14_982_888,
    ('FasterNet', 's'): 31_181_032,
    ('FasterNet', 'm'): 53_521_464,
    ('FasterNet', 'l'): 93_465_192,
    ('ConvNeXt', 'tiny'): 28_589_128,
    ('ConvNeXt', 'tiny_k5'): 28_430_152,
    ('ConvNeXt', 'tiny_k3'): 28_324_168,
    ('ConvNeXt', 'tiny_k3_par1_2'): 28_291_048,
    ('ConvNeXt', 'tiny_k3_par3_8'): 28_282_768,
    ('ConvNeXt', 'tiny_k3_par1_4'): 28_274_488,
    ('ConvNeXt', 'tiny_k3_par1_8'): 28_266_208,
    ('ConvNeXt', 'tiny_k3_par1_16'): 28_262_068,
    ('ConvNeXt', 'small'): 50_223_688,
    ('ConvNeXt', 'base'): 88_591_464,
}
TIMM = dict(sorted(in_timm().items()))
every_one_in_timm = pytest.mark.parametrize(('family', 'arch'), TIMM, ids=list(TIMM.values()))


def classifier(family, arch, num_classes=1000, init_cfg=None):
    """A classifier without initialisation: its tensors hold whatever the memory held."""
    spec = getattr(backbones, family).ARCHS[arch]
    head = dict(type=HEADS[family], in_channels=spec.dims[-1], num_classes=num_classes)
    if (family, arch) in {('FasterNet', 't0'), ('FasterNet', 't1')}:
        head['act'] = 'GELU'
    with torch.device('meta'):
        model = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type=family, arch=arch, out_indices=(3,)),
                head=head,
                init_cfg=init_cfg,
            )
        )
    return model


def timm_classifier(name, seed=0):
    """A timm model in which every layer matters: random weights, norms, statistics and layer scales."""
    with torch.device('meta'):
        model = timm.create_model(name)
    model.to_empty(device='cpu')
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith('num_batches_tracked'):
                tensor.zero_()
            elif tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            elif key.endswith(('running_var', 'gamma', 'weight')):
                tensor.uniform_(0.25, 0.75, generator=generator)
            else:
                tensor.normal_(std=0.1, generator=generator)
    return model.eval()


def test_every_published_arch_is_covered():
    assert set(PARAMETERS) == names_of(ARCHS)
    assert set(HEADS) == {family.__name__ for family in FAMILIES}


@pytest.mark.parametrize(('family', 'arch'), PARAMETERS, ids='-'.join)
def test_number_of_parameters(family, arch):
    model = classifier(family, arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[family, arch]


@every_one_in_timm
def test_logits_are_timms(family, arch, tmp_path):
    theirs, path = timm_classifier(TIMM[family, arch]), tmp_path / 'whole.pth'
    torch.save(theirs.state_dict(), path)
    ours = classifier(family, arch, init_cfg=dict(type='Pretrained', checkpoint=str(path))).to_empty(device='cpu')
    ours.init_weights()
    path.unlink()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, expected = ours.eval()(x), theirs(x)
    assert expected.std() > 0.01
    assert got.shape == (2, 1000)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def official_fasternet(key):
    """From timm's names to the authors': stages and mergings alternate in one list, the head has other names."""
    key = re.sub(r'stages\.(\d)\.downsample', lambda match: f'stages.{2 * int(match[1]) - 1}', key)
    key = re.sub(r'stages\.(\d)\.blocks', lambda match: f'stages.{2 * int(match[1])}.blocks', key)
    return key.replace('conv_head.', 'avgpool_pre_head.1.').replace('classifier.', 'head.')


def official_convnext(key):
    """From timm's names to the authors'."""
    key = re.sub(r'^stem\.', 'downsample_layers.0.', key)
    key = re.sub(r'stages\.(\d)\.downsample', r'downsample_layers.\1', key)
    key = key.replace('.blocks.', '.').replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
    return key.replace('head.norm.', 'norm.').replace('head.fc.', 'head.')


@pytest.mark.parametrize(
    ('family', 'arch', 'rename', 'wrap'),
    [
        ('InceptionNeXt', 'atto', str, lambda state: state),
        ('FasterNet', 't0', official_fasternet, lambda state: state),
        ('ConvNeXt', 'tiny', official_convnext, lambda state: {'model': state}),
    ],
    ids=list(HEADS),
)
def test_the_authors_layout_gives_the_same_weights(family, arch, rename, wrap):
    model, state = classifier(family, arch), timm_classifier(TIMM[family, arch]).state_dict()
    official = {rename(key): value for key, value in state.items()}
    assert (official.keys() == state.keys()) == (family == 'InceptionNeXt')
    expected, got = own_state_dict(model, state), own_state_dict(model, wrap(official))
    assert got.keys() == expected.keys() == model.state_dict().keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert own_state_dict(model, {'state_dict': got}) == got


def test_a_wrong_number_of_classes_loads_nothing(tmp_path):
    torch.save(timm_classifier('fasternet_t0').state_dict(), tmp_path / 'whole.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    model = classifier('FasterNet', 't0', num_classes=7, init_cfg=init_cfg).to_empty(device='cpu')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r'others are head\.fc\.bias, head\.fc\.weight; nothing was loaded\n'):
        model.init_weights()
    # Whatever the memory held, numbers or none.
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_weights_of_another_family_are_refused():
    model = classifier('FasterNet', 't0', init_cfg=dict(type='Pretrained', checkpoint='inceptionnext_atto'))
    with pytest.raises(UserError, match='weights of InceptionNeXt, but the backbone is FasterNet\n'):
        model.init_weights()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(head=dict(type='InceptionNeXtHead', in_channels=768, num_classes=10)), 'ends in 320 channels'),
        (dict(head=dict(type='InceptionNeXtHead', in_channels=320, num_classes=1)), 'num_classes=1'),
        (dict(head=dict(type='FasterNetHead', in_channels=320, num_classes=10, act='Swish')), "'Swish'"),
        (dict(train_cfg=dict(label_smoothing=1.0)), 'label_smoothing=1.0'),
        (dict(train_cfg=dict(mixup=-0.1)), 'mixup=-0.1'),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = dict(
        type='ImageClassifier',
        backbone=dict(type='InceptionNeXt', arch='atto', out_indices=(3,)),
        head=dict(type='InceptionNeXtHead', in_channels=320, num_classes=10),
    )
    with pytest.raises(UserError, match=re.escape(message)) as error, torch.device('meta'):
        MODELS.build({**good, **change})
    assert str(error.value).count('\n') == 1


def test_dropout_stands_before_the_last_layer():
    head = dense.classify.InceptionNeXtHead(8, 5, dropout=0.5).train()
    seen = []
    head.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(torch.randn(64, 8, 2, 2))
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6


def test_heads_start_like_the_released_ones():
    for head in (
        dense.classify.InceptionNeXtHead(320, 1000),
        dense.classify.FasterNetHead(320, 1000),
        dense.classify.ConvNeXtHead(320, 1000),
    ):
        for module in head.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.02)
                assert module.bias is None or not module.bias.any()
