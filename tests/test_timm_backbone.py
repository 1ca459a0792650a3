"""Does a timm network keep the promises of ``DenseBackbone``, and give exactly what timm gives?"""

import copy
from collections.abc import Mapping

import pytest
import timm
import torch
from leaves import BY_NAME
from mmengine.registry import MODELS, init_default_scope
from timm_nets import ARCHS, PATCHES, SMALL, SOME, build, images, random_weights
from torch import Tensor, nn

from backbones import FasterNet, InceptionNeXt, TimmBackbone
from backbones.base import DenseBackbone
from dense.engine.launch import load_config
from dense.engine.options import parse_options

BATCH_NORM = nn.modules.batchnorm._BatchNorm

every_arch = pytest.mark.parametrize('arch', ARCHS)
some_archs = pytest.mark.parametrize('arch', SOME)
small_arch = pytest.mark.parametrize('arch', SMALL)


def test_every_kind_is_covered():
    kinds = {type(timm.create_model(arch, features_only=True, **ARCHS[arch])).__name__ for arch in SMALL}
    assert kinds == {'FeatureListNet', 'MobileNetV3Features', 'FeatureGetterNet'}


def timms_features(arch: str, state: Mapping[str, Tensor], x: Tensor, out_indices: tuple[int, ...]) -> list[Tensor]:
    """By timm's ``features_only``, whose names are timm's with some dots replaced or a module before them."""
    net = timm.create_model(arch, features_only=True, out_indices=out_indices, **ARCHS[arch]).eval()
    by_flat_name = {key.replace('.', '_'): value for key, value in state.items()}
    renamed = {key: by_flat_name[key.removeprefix('model.').replace('.', '_')] for key in net.state_dict()}
    net.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        maps = net(x)
    if getattr(net, 'output_fmt', 'NCHW') == 'NHWC':
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    return maps


@every_arch
@pytest.mark.parametrize('size', [(64, 96), (65, 97)], ids=str)
def test_maps_are_exactly_timms(arch, size, tmp_path):
    state = random_weights(arch)
    torch.save(state, tmp_path / 'timm.pth')
    backbone = build(arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth')))
    backbone.init_weights()
    with torch.no_grad():
        got = backbone.eval()(images(*size))
    patch = PATCHES.get(arch, 1)
    padded = nn.functional.pad(images(*size), (0, -size[1] % patch, 0, -size[0] % patch))
    expected = timms_features(arch, state, padded, backbone.out_indices)
    assert isinstance(backbone, DenseBackbone) and isinstance(got, tuple)
    assert len(got) == len(expected) == len(backbone.out_channels) == len(backbone.out_strides)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [m.shape[1] for m in got] == list(backbone.out_channels)
    for m, stride in zip(got, backbone.out_strides, strict=True):
        assert all(
            extent // stride <= side <= -(-extent // stride) for side, extent in zip(m.shape[2:], size, strict=True)
        )


def test_the_last_four_maps_are_the_default():
    strides = {arch: build(arch).out_strides for arch in ARCHS}
    assert strides.pop('test_vit') == (16, 16, 16, 16)
    assert set(strides.values()) == {(4, 8, 16, 32)}
    assert MODELS.build(dict(type='TimmBackbone', arch='test_resnet', out_indices=[0, 2])).out_strides == (2, 8)


@every_arch
@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 2)], ids=str)
def test_a_subset_of_maps_builds_nothing_unused(arch, out_indices):
    backbone = build(arch, out_indices=out_indices, out_norm=dict(type='BN')).train()
    maps = backbone(images(64, 96))
    assert [m.shape[1] for m in maps] == list(backbone.out_channels) and len(maps) == len(out_indices)
    # Cubed, because the mean of a normalised map and of its square do not depend on what came before the norm.
    sum(m.pow(3).mean() for m in maps).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    norms = {name.split('.')[0] for name, _ in backbone.named_parameters() if name.startswith('out_norm')}
    assert norms == {f'out_norm{i}' for i in out_indices}


def parameters_behind(arch: str, index: int) -> set[str]:
    """The parameters that a map depends on, by its gradient."""
    backbone = build(arch, out_indices=(index,))
    backbone(images(64, 96))[0].pow(3).mean().backward()
    return {name for name, p in backbone.named_parameters() if p.grad is not None}


@some_archs
def test_frozen_stages_are_all_that_a_map_depends_on(arch):
    num_stages = build(arch).out_indices[-1] + 1
    for stages in range(1, num_stages + 1):
        backbone = build(arch, frozen_stages=stages, out_norm=dict(type='BN'))
        frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
        assert frozen == parameters_behind(arch, stages - 1), stages
        assert len(frozen) >= 2
    stem = {name for name, p in build(arch, frozen_stages=0).named_parameters() if not p.requires_grad}
    assert stem <= parameters_behind(arch, 0)
    assert not [name for name, p in build(arch).named_parameters() if not p.requires_grad]


@some_archs
def test_frozen_stages_do_not_move(arch):
    backbone = build(arch, frozen_stages=2, out_norm=dict(type='BN'))
    assert backbone.train() is backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(m.pow(3).mean() for m in backbone(images(64, 96))).backward()
    optimizer.step()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    modules = {name.rpartition('.')[0] for name in frozen} - {'body'}
    assert frozen and modules and changed
    assert not [name for name in changed if name in frozen or name.rpartition('.')[0] in modules]
    assert not [name for name in modules if backbone.get_submodule(name).training]
    assert {name for name in before if name.startswith('out_norm')} <= changed


def test_norm_eval_keeps_the_statistics_of_the_network_only():
    backbone = build('test_resnet', norm_eval=True, out_norm=dict(type='BN')).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(images(64, 64))
    changed = {name for name, buffer in backbone.named_buffers() if not torch.equal(before[name], buffer)}
    assert changed == {name for name in before if name.startswith('out_norm')} and len(changed) == 12
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone.eval() is backbone and not any(m.training for m in backbone.modules())


@pytest.mark.parametrize('arch', [*SMALL, 'convnext_atto', 'inception_next_atto'])
def test_checkpointing_changes_neither_maps_nor_gradients_nor_statistics(arch):
    plain, saving = build(arch).train(), copy.deepcopy(build(arch, with_cp=True)).train()
    saving.load_state_dict(plain.state_dict())
    stored = []
    results = []
    for backbone in (plain, saving):
        sizes: list[int] = []

        def count(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            maps = backbone(images(64, 96))
        sum(m.square().mean() for m in maps).backward()
        stored.append(sum(sizes))
        results.append([*maps, *(p.grad for p in backbone.parameters()), *backbone.buffers()])
    # What checkpointing itself keeps is beyond the sight of these hooks.
    assert stored[1] < 0.7 * stored[0]
    assert len(results[0]) == len(results[1]) > 20
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    if any(isinstance(m, BATCH_NORM) for m in saving.modules()):
        momenta = {m.momentum for m in saving.modules() if isinstance(m, BATCH_NORM)}
        assert 0.0 not in momenta


@pytest.mark.parametrize(('family', 'arch', 'timm_name'), [
    (InceptionNeXt, 'atto', 'inception_next_atto'), (FasterNet, 't0', 'fasternet_t0'),
])  # fmt: skip
def test_layer_depths_are_those_of_the_families_here(family, arch, timm_name):
    theirs, ours = build(timm_name, out_norm=dict(type='BN')), family(arch, out_norm=dict(type='BN'))
    depths = {name: ours.get_layer_depth(name) for name, _ in ours.named_parameters()}
    got = {name: theirs.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in theirs.named_parameters()}
    timm_names = {name.removeprefix('body.'): depth for name, depth in got.items()}
    assert family.convert_state_dict(timm_names) == depths and len(depths) > 40


@some_archs
def test_depths_grow_with_the_network(arch):
    backbone = build(arch, out_norm=dict(type='BN'))
    names = [name for name, _ in backbone.named_parameters()]
    for depth_of in (backbone.get_layer_depth, backbone.get_stage_depth):
        depths = {name: depth_of(name) for name in names}
        assert len({total for _, total in depths.values()}) == 1
        heads = {depth for name, (depth, _) in depths.items() if name.startswith('out_norm')}
        inside = {depth for name, (depth, _) in depths.items() if not name.startswith('out_norm')}
        total = next(iter(depths.values()))[1]
        assert heads == {total - 1} and min(inside) == 0 and max(inside) < total - 1
        with pytest.raises(ValueError, match=r'neck\.conv'):
            depth_of('neck.conv')
    for i in range(backbone.out_indices[-1] + 1):
        behind = {backbone.get_stage_depth(name)[0] for name in parameters_behind(arch, i)}
        assert max(behind) == i + 1 or (i == 0 and max(behind) == 0)


@small_arch
def test_drop_path_is_timms(arch):
    def rates(model: nn.Module) -> list[float]:
        return [m.drop_prob for m in model.modules() if type(m).__name__ == 'DropPath']

    expected = rates(timm.create_model(arch, drop_path_rate=0.3, **ARCHS[arch]))
    assert rates(build(arch, drop_path_rate=0.3)) == expected and max(expected) > 0.1
    assert not any(rates(build(arch)))


class Featureless(nn.Module):
    """A model that only classifies."""


BAD_ARGUMENTS = [
    (dict(arch='resnet5'), r"no network 'resnet5'; similar names: .*resnet50"),
    (dict(arch='hf-hub:timm/resnet10t.c3_in1k'), 'no network'),
    (dict(arch='test_resnet.unknown_tag'), 'unknown_tag'),
    (dict(arch='featureless'), 'returns no features'),
    (dict(out_indices=(0, 5)), '0 to 4'),
    (dict(out_indices=(2, 1)), 'ascending'),
    (dict(frozen_stages=6), '-1 to 5'),
    (dict(arch='mvitv2_tiny', frozen_stages=1), 'does not say which modules'),
    (dict(drop_path_rate=1.0), 'at least 0, below 1'),
    (dict(arch='vgg11', drop_path_rate=0.1), r"cannot build 'vgg11'.*drop_path_rate"),
    (dict(timm_options=dict(num_classes=3)), 'num_classes'),
    (dict(timm_options=dict(depth=3)), r"cannot build 'test_resnet'.*depth"),
    (dict(arch='dla46_c', with_cp=True), 'no activation checkpointing'),
    (dict(out_norm=dict(type='XN')), 'XN.*SyncBN'),
    (dict(init_cfg=dict(type='Kaiming')), 'Pretrained'),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='no/such/file.pth')), 'does not exist'),
]


@pytest.mark.parametrize(('arguments', 'message'), BAD_ARGUMENTS, ids=[str(case[0]) for case in BAD_ARGUMENTS])
def test_bad_arguments_say_what_is_allowed(arguments, message, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr('timm.is_model', lambda name: name == 'featureless' or name in timm.list_models())
    monkeypatch.setattr('timm.create_model', lambda n, **o: Featureless() if n == 'featureless' else create(n, **o))
    with pytest.raises(ValueError, match=message) as caught:
        TimmBackbone(**{'arch': 'test_resnet', **arguments}).init_weights()
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy


@pytest.mark.parametrize('leaf', [
    'upernet_inceptionnext-a_400i_own-256x256', 'mask-rcnn_inceptionnext-a_fpn_400i_own-320x320',
])  # fmt: skip
def test_any_config_takes_a_timm_network_from_the_command_line(leaf):
    """The options that the documentation tells a user to give."""
    config = load_config(BY_NAME[leaf], options=parse_options([
        "model.backbone={'type': 'TimmBackbone', 'arch': 'tf_efficientnet_lite0', 'out_norm': {'type': 'BN'}}",
        *(['model.neck.in_channels=[24,40,112,320]'] if leaf.startswith('mask') else [
            'model.decode_head.in_channels=[24,40,112,320]', 'model.auxiliary_head.in_channels=112',
        ]),
    ]))  # fmt: skip
    init_default_scope(config.default_scope)
    with torch.device('meta'):
        model = MODELS.build(config.model)
        maps = model.extract_feat(torch.empty(1, 3, 96, 128))
    assert type(model.backbone) is TimmBackbone and len(maps) >= 4
