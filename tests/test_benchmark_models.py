"""Does the benchmark time the model that was named?"""

import importlib.util

import pytest
import torch
from leaves import BY_NAME
from torch import nn

from dense.analysis.complexity import config_complexity
from dense.benchmark import case as bench
from dense.benchmark.models import Subject, build_subject
from dense.errors import UserError

CPU = torch.device('cpu')
MASK_RCNN = BY_NAME['mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160']
UPERNET = BY_NAME['upernet_inceptionnext-a_450i_mini-128x128']
CLASSIFIER = BY_NAME['classifier_inceptionnext-a_30e_own-64x64']


@pytest.mark.parametrize('name', ['InceptionNeXt:atto', 'FasterNet:t0', 'ConvNeXt:tiny_k3', 'timm:inception_next_atto'])
def test_backbones_by_name(name):
    subject = build_subject(name, train=False, device=CPU, shape=(3, 32, 32))
    assert subject.images(2).shape == (2, 3, 32, 32) and not subject.model.training
    subject.run(subject.model, subject.images(1))
    assert subject.flops > 1e6


def test_our_backbone_and_timms_do_the_same_work():
    ours, theirs = (
        build_subject(name, train=False, device=CPU, shape=(3, 64, 64)).flops
        for name in ('InceptionNeXt:atto', 'timm:inception_next_atto')
    )
    assert ours == theirs


def test_training_counts_the_backward_pass():
    forward, both = (
        build_subject('FasterNet:t0', train=train, device=CPU, shape=(3, 64, 64)).flops for train in (False, True)
    )
    # Twice the forward's products, but the first layer needs no gradient of the image.
    assert 2.9 * forward < both < 3 * forward


def test_fused_model():
    subject = build_subject('InceptionNeXt:atto+fused', train=False, device=CPU, shape=(3, 64, 64))
    plain = build_subject('InceptionNeXt:atto', train=False, device=CPU, shape=(3, 64, 64))
    assert subject.is_fused and subject.flops == plain.flops
    images = subject.images(2)
    (expected,), (got,) = plain.run(plain.model, images), subject.run(subject.model, images)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('path', [MASK_RCNN, UPERNET, CLASSIFIER], ids=lambda path: path.stem)
def test_whole_models(path):
    """A step of inference and one of training run, and inference does the work that the complexity counts."""
    subject = build_subject(str(path), train=False, device=CPU, shape=(3, 64, 96))
    assert subject.flops == 2 * config_complexity(path, (64, 96)).macs
    training = build_subject(str(path), train=True, device=CPU, shape=(3, 64, 96))
    before = {name: value.clone() for name, value in training.model.named_parameters()}
    bench.make_step(training, training.images(2), 'train')()
    changed = [name for name, value in training.model.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.startswith('backbone.stem') for name in changed)


@pytest.mark.parametrize(
    ('name', 'cause', 'remedy'),
    [
        ('tiny', 'cannot read the model', 'Class:arch'),
        ('InceptionNext:tiny', 'unknown family', "did you mean 'InceptionNeXt'"),
        ('InceptionNeXt:nano', "no arch 'nano'", 'atto, base, small, tiny'),
        ('timm:resnet51', "no model 'resnet51'", "'resnet50"),
        ('timm:zzzz', "no model 'zzzz'", 'names are allowed, for example'),
        ('nowhere.py', 'config file not found', ''),
    ],
)
def test_unknown_names(name, cause, remedy):
    with pytest.raises(UserError) as caught:
        build_subject(name, train=False, device=CPU)
    assert cause in caught.value.cause and remedy in caught.value.remedy


def test_tuned_model():
    kwargs = dict(train=True, device=torch.device('cpu'), shape=(3, 64, 64))
    tuned = build_subject('InceptionNeXt:atto+tuned', **kwargs)
    assert all(block.lean_mlp for stage in tuned.model.stages for block in stage.blocks) and not tuned.is_fused
    assert build_subject('FasterNet:t0+tuned', **kwargs).flops > 0  # no lean MLP: nothing to choose


def test_lean_model():
    lean, plain = (
        build_subject(name, train=True, device=CPU, shape=(3, 64, 64))
        for name in ('InceptionNeXt:atto+lean', 'InceptionNeXt:atto')
    )
    assert all(block.lean_mlp for stage in lean.model.stages for block in stage.blocks) and not lean.is_fused
    assert not plain.model.stages[0].blocks[0].lean_mlp
    losses = [float(subject.loss(subject.model, subject.images(2)).detach()) for subject in (lean, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert lean.flops == plain.flops


@pytest.mark.parametrize(
    ('name', 'cause'), [('FasterNet:t0+lean', 'no lean MLP'), ('timm:resnet18+lean', 'no backbone')]
)
def test_not_every_model_can_be_lean(name, cause):
    with pytest.raises(UserError, match=cause) as caught:
        build_subject(name, train=True, device=CPU, shape=(3, 32, 32))
    assert name.removesuffix('+lean') in caught.value.remedy


def test_optimizer_of_the_step():
    for name, optimizer, kind, fused in (
        ('InceptionNeXt:atto', 'sgd', torch.optim.SGD, None),
        ('InceptionNeXt:atto', 'adamw', torch.optim.AdamW, None),
        ('InceptionNeXt:atto+lean', 'adamw', torch.optim.AdamW, True),
    ):
        made = bench._optimizer(Subject(name, nn.Linear(1, 1), (3, 4, 4), len, len), optimizer)
        assert type(made) is kind and made.param_groups[0]['fused'] is fused


def test_a_fused_model_does_not_train():
    with pytest.raises(UserError, match='no gradients'):
        build_subject('InceptionNeXt:atto+fused', train=True, device=CPU)


@pytest.mark.slow
def test_exported_model():
    name, shape = 'InceptionNeXt:atto', (3, 64, 96)
    exported = build_subject(f'{name}+onnx', train=False, device=CPU, shape=shape)
    plain = build_subject(name, train=False, device=CPU, shape=shape)
    assert exported.is_fused and exported.flops == plain.flops
    for batch in (1, 3):
        images = exported.images(batch)
        (expected,), (got,) = plain.run(plain.model, images), exported.run(exported.model, images)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('name', 'options', 'cause'),
    [
        ('InceptionNeXt:atto+onnx', dict(train=True), 'cannot be trained'),
        ('InceptionNeXt:atto+onnx', dict(device=torch.device('meta')), 'on the CPU only'),
        ('InceptionNeXt:atto+onnx', dict(shape=(3, 32, 64)), 'does not accept images of 3 x 32 x 64'),
        ('InceptionNeXt:atto+onnx', dict(shape=(4, 64, 64)), 'does not accept images of 4 x 64 x 64'),
        ('timm:resnet18+onnx', dict(), 'not a backbone of this project'),
        (f'{CLASSIFIER}+onnx', dict(), 'not a backbone of this project'),
    ],
)
def test_what_cannot_be_timed_exported(name, options, cause, monkeypatch):
    if options.get('device') is not None:  # stands for a GPU
        monkeypatch.setattr('dense.benchmark.models._count_flops', lambda *_: 0.0)
    given = dict(train=False, device=CPU, shape=(3, 64, 64)) | options
    with pytest.raises(UserError, match=cause):
        build_subject(name, **given)


def test_timing_an_exported_model_needs_packages(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        'dense.export.write.importlib.util.find_spec', lambda name: None if name == 'onnxruntime' else find(name)
    )
    with pytest.raises(UserError, match='needs onnxruntime') as caught:
        build_subject('InceptionNeXt:atto+onnx', train=False, device=CPU, shape=(3, 64, 64))
    assert '[export]' in caught.value.remedy


def test_checkpointed_model():
    checkpointed, plain = (
        build_subject(f'InceptionNeXt:atto{suffix}', train=True, device=CPU, shape=(3, 64, 64))
        for suffix in ('+cp', '')
    )
    assert all(stage.with_cp for stage in checkpointed.model.stages)
    losses = [float(subject.loss(subject.model, subject.images(2)).detach()) for subject in (checkpointed, plain)]
    assert losses[0] == losses[1] and checkpointed.flops == plain.flops


def test_config_with_a_backbone_of_timm():
    ours, other = (
        build_subject(f'{MASK_RCNN}{suffix}', train=False, device=CPU, shape=(3, 128, 128))
        for suffix in ('', '+timm:inception_next_atto')
    )
    assert (
        type(other.model.backbone).__name__ == 'TimmBackbone' and type(ours.model.backbone).__name__ == 'InceptionNeXt'
    )
    assert other.flops == ours.flops
    assert count(other.model.backbone) == count(ours.model.backbone)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ('name', 'shape'),
    [('timm:mobilevit_xxs', (3, 256, 256)), ('timm:resnet18', (3, 224, 224)), ('FasterNet:t0', (3, 224, 224))],
)
def test_images_have_the_size_that_a_network_was_trained_at(name, shape):
    assert build_subject(name, train=False, device=CPU).shape == shape
