"""Does every arch of every family keep the promises of ``DenseBackbone``?"""

from functools import lru_cache
from itertools import combinations

import pytest
import torch
from mmengine.registry import MODELS
from product import ARCHS, FAMILIES
from torch import nn

from backbones import ConvNeXt, FasterNet, InceptionNeXt, layers
from backbones.base import DenseBackbone

# ConvNeXt has no small network of its own.
SMALL_CONVNEXT = dict(dims=(16, 32, 64, 128), depths=(2, 2, 6, 2), kernel=3, conv_ratio=1 / 4)
SMALLEST = [(InceptionNeXt, 'atto'), (FasterNet, 't0'), (ConvNeXt, SMALL_CONVNEXT)]
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def name_of(value) -> str:
    return value if isinstance(value, str) else getattr(value, '__name__', 'custom')


every_arch = pytest.mark.parametrize(('family', 'arch'), ARCHS, ids=name_of)
smallest_arch = pytest.mark.parametrize(('family', 'arch'), SMALLEST, ids=name_of)


def test_every_family_has_its_smallest_network():
    assert {family for family, _ in SMALLEST} == set(FAMILIES)


def images(*size: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@every_arch
def test_one_class_serves_every_openmmlab_project(family, arch):
    built = MODELS.build(dict(type=family.__name__, arch=arch, out_indices=(0,)))
    assert type(built) is family
    assert isinstance(built, DenseBackbone)


@lru_cache(maxsize=1)
def in_evaluation(family, arch) -> DenseBackbone:
    """Built once for consecutive tests, which must not change it."""
    return family(arch).eval()


@pytest.mark.parametrize('size', [(64, 64), (65, 97), (32, 33)], ids=str)
@every_arch
def test_maps_have_the_promised_shapes(family, arch, size):
    model = in_evaluation(family, arch)
    with torch.no_grad():
        outs = model(images(*size, batch=1))
    assert isinstance(outs, tuple)
    assert model.out_strides == (4, 8, 16, 32)
    assert [tuple(out.shape) for out in outs] == [
        (1, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(model.out_channels, model.out_strides, strict=True)
    ]
    assert all(out.isfinite().all() for out in outs)


@every_arch
def test_gradients_reach_every_parameter(family, arch):
    model = family(arch, out_norm=dict(type='BN'), layer_scale_init_value=0.5).train()
    # Cubed, because the mean of a normalised map and of its square do not depend on what came before the norm.
    sum(out.pow(3).mean() for out in model(images(64, 96))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    zero = [name for name, p in model.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0]
    assert not without and not zero
    assert len(list(model.parameters())) > 40


SUBSETS = [subset for size in (1, 2, 3, 4) for subset in combinations(range(4), size)]


@smallest_arch
@pytest.mark.parametrize('out_indices', SUBSETS, ids=str)
def test_a_subset_of_stages_builds_nothing_unused(family, arch, out_indices):
    model = family(arch, out_indices=out_indices, out_norm=dict(type='BN'), layer_scale_init_value=0.5).train()
    outs = model(images(64, 64))
    sum(out.pow(3).mean() for out in outs).backward()
    assert len(outs) == len(out_indices) == len(model.out_channels) == len(model.out_strides)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    norms = {name.split('.')[0] for name, _ in model.named_parameters() if name.startswith('out_norm')}
    assert norms == {f'out_norm{i}' for i in out_indices}


@smallest_arch
@pytest.mark.parametrize('frozen_stages', [0, 1, 2, 3, 4])
def test_frozen_stages_stay_frozen(family, arch, frozen_stages):
    torch.manual_seed(0)
    model = family(arch, frozen_stages=frozen_stages, out_norm=dict(type='BN'), layer_scale_init_value=0.5)
    frozen = ('stem.', *(f'stages.{i}.' for i in range(frozen_stages)))
    assert model.train() is model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(out.pow(3).mean() for out in model(images(64, 64))).backward()
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith(frozen)]
    assert not [name for name, p in model.named_parameters() if p.requires_grad and name.startswith(frozen)]
    batches = {name for name in before if name.endswith('num_batches_tracked') and not name.startswith(frozen)}
    assert batches and batches <= changed


@smallest_arch
def test_freezing_changes_neither_maps_nor_the_other_gradients(family, arch):
    free, frozen = family(arch, layer_scale_init_value=0.5), family(arch, layer_scale_init_value=0.5, frozen_stages=2)
    frozen.load_state_dict(free.state_dict())
    outs = []
    for model in (free.eval(), frozen.eval()):  # a frozen batch norm does not take the statistics of the batch
        outs.append(model(images(64, 64)))
        sum(out.square().mean() for out in outs[-1]).backward()
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True)) and len(outs[0]) == 4
    trained = {name: p.grad for name, p in frozen.named_parameters() if p.grad is not None}
    assert {name for name, _ in free.named_parameters() if name.startswith(('stages.2.', 'stages.3.'))} == set(trained)
    gradients = {name: p.grad for name, p in free.named_parameters()}
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in trained.items())


@smallest_arch
def test_channels_last_gives_the_same_maps_gradients_and_statistics(family, arch):
    options = dict(out_indices=(0, 1), out_norm=dict(type='BN'), layer_scale_init_value=0.5)
    first, last = family(arch, **options).double().train(), family(arch, **options).double().train()
    last.load_state_dict(first.state_dict())
    last.to(memory_format=torch.channels_last)
    x = images(32, 48).double()
    outs = [first(x), last(x.to(memory_format=torch.channels_last))]
    for maps in outs:
        sum(out.pow(3).mean() for out in maps).backward()
    for a, b in zip(*outs, strict=True):
        assert b.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    gradients = {name: p.grad for name, p in last.named_parameters()}
    assert len(gradients) > 20
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)
    for (name, buffer), other in zip(first.named_buffers(), last.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-9, atol=1e-9, msg=name)


@smallest_arch
def test_norm_eval_keeps_the_statistics_of_the_network_only(family, arch):
    model = family(arch, norm_eval=True, out_norm=dict(type='BN')).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(images(64, 64))
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(before[name], buffer)}
    assert changed == {name for name in before if name.startswith('out_norm')}
    assert len(changed) == 12
    assert all(p.requires_grad for p in model.parameters())


@smallest_arch
def test_train_and_eval_return_self(family, arch):
    model = family(arch)
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training
    assert not any(m.training for m in model.modules())


@smallest_arch
@pytest.mark.parametrize('drop_path_rate', [0.0, 0.3])
def test_checkpointing_changes_neither_output_nor_gradients_nor_statistics(family, arch, drop_path_rate):
    plain = family(arch, drop_path_rate=drop_path_rate, layer_scale_init_value=0.5).train()
    saving = family(arch, drop_path_rate=drop_path_rate, layer_scale_init_value=0.5, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    outs = []
    for model in (plain, saving):
        torch.manual_seed(1)
        outs.append(model(images(64, 64)))
        sum(out.square().mean() for out in outs[-1]).backward()
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (plain, saving)]
    assert len(gradients[0]) == len(gradients[1]) > 40
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=name)
    for (name, ours), theirs in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


@smallest_arch
def test_checkpointing_stores_less(family, arch):
    def stored(with_cp: bool) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            family(arch, with_cp=with_cp).train()(images(64, 64))
        return total

    # Checkpointing saves its inputs beyond the sight of these hooks: only stem and downsamplings are counted.
    assert stored(True) < stored(False) / 2


@every_arch
@pytest.mark.parametrize('in_channels', [1, 4])
def test_images_may_have_other_than_three_channels(family, arch, in_channels):
    model = family(arch, in_channels=in_channels, out_indices=(0,)).eval()
    assert model(images(64, 64, channels=in_channels))[0].shape[1] == model.out_channels[0]


@every_arch
def test_layer_depth_grows_with_the_network(family, arch):
    with torch.device('meta'):
        model = family(arch, out_norm=dict(type='BN'))
    num_blocks = sum(model.ARCHS[arch].depths)
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in model.named_parameters()}
    assert {total for _, total in depths.values()} == {num_blocks + 2}
    order = [depth for name, (depth, _) in depths.items() if not name.startswith('out_norm')]
    assert order == sorted(order) and set(order) == set(range(num_blocks + 1))
    assert {depth for name, (depth, _) in depths.items() if name.startswith('out_norm')} == {num_blocks + 1}
    with pytest.raises(ValueError, match=r'neck\.conv'):
        model.get_layer_depth('neck.conv', 'backbone.')


@every_arch
def test_drop_path_grows_linearly_over_all_blocks(family, arch):
    with torch.device('meta'):
        model = family(arch, drop_path_rate=0.3)
        partial = family(arch, drop_path_rate=0.3, out_indices=(0,))
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * i / (len(rates) - 1) for i in range(len(rates))], abs=1e-6)
    shorter = [getattr(block.drop_path, 'drop_prob', 0.0) for block in partial.stages[0].blocks]
    assert shorter == rates[: len(shorter)]


NORMS = [dict(type='BN'), dict(type='SyncBN'), dict(type='LN'), dict(type='GN', num_groups=1)]


def test_every_norm_is_tried():
    assert {norm['type'] for norm in NORMS} == set(layers._NORMS)


@smallest_arch
@pytest.mark.parametrize('norm', NORMS, ids=lambda norm: norm['type'])
def test_output_norms(family, arch, norm):
    model = family(arch, out_norm=norm).eval()
    norms = [model.get_submodule(f'out_norm{i}') for i in range(4)]
    assert [sum(p.numel() for p in n.parameters()) for n in norms] == [2 * c for c in model.out_channels]
    if norm['type'] == 'LN':
        first = model(images(64, 64))[0]
        torch.testing.assert_close(first.mean(1), torch.zeros_like(first.mean(1)), atol=1e-4, rtol=0)


BAD_ARGUMENTS = [
    (dict(arch='huge'), 'huge.*allowed: '),
    (dict(arch=dict(dims=(8, 16))), 'depths'),
    (dict(arch=dict(dims=(8, 16), depths=(1, 1), width=3)), 'width'),
    (dict(out_indices=(0, 4)), '0 to 3'),
    (dict(out_indices=(-1,)), '0 to 3'),
    (dict(out_indices=(1, 0)), 'ascending'),
    (dict(out_indices=()), 'ascending'),
    (dict(frozen_stages=5), '-1 to 4'),
    (dict(drop_path_rate=1.0), 'at least 0, below 1'),
    (dict(out_norm=dict(type='XN')), 'XN.*SyncBN'),
    (dict(out_norm=dict(num_groups=1)), 'None'),
    (dict(init_cfg=dict(type='Kaiming')), 'Pretrained'),
]


@smallest_arch
@pytest.mark.parametrize(('arguments', 'message'), BAD_ARGUMENTS, ids=[str(case[0]) for case in BAD_ARGUMENTS])
def test_bad_arguments_say_what_is_allowed(family, arch, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        family(**{'arch': arch, **arguments}).init_weights()
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
