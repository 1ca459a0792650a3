"""Are published weights loaded whole, or refused with a reason?"""

import os
import pickle
import re
from dataclasses import replace

import pytest
import safetensors.torch
import timm
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

import backbones
from backbones import ConvNeXt, FasterNet, InceptionNeXt
from backbones.records import PublishedWeights
from backbones.serialization import CheckpointError, load_file
from backbones.weights import WEIGHTS, load_pretrained

ARCH = 'atto'
NUM_TENSORS = 220  # of the backbone; the classifier has 6 more


@pytest.fixture(scope='module')
def published() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model('inception_next_atto').state_dict()


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], value) for name, value in expected.items())


def prefixed(prefix: str):
    return lambda state: {prefix + key: value for key, value in state.items()}


FORMS = {
    'flat': lambda state: state,
    'state_dict': lambda state: {'state_dict': state, 'epoch': 3},
    'model': lambda state: {'model': state},
    'model_ema': lambda state: {'model_ema': state, 'epoch': 1},
    'module.': prefixed('module.'),
    'backbone.': prefixed('backbone.'),
    'a detector': lambda state: {'state_dict': {**prefixed('backbone.')(state), 'neck.conv.weight': torch.zeros(1)}},
    'a compiled model under DDP': lambda state: {'model': prefixed('module._orig_mod.backbone.')(state)},
}


# A .safetensors file has no nested entries.
WRITTEN = [(form, '.pth') for form in FORMS] + [(form, '.safetensors') for form in ('flat', 'module.', 'backbone.')]


@pytest.mark.parametrize(('form', 'suffix'), WRITTEN)
def test_every_wrapping_is_read(form, suffix, published, tmp_path):
    save = torch.save if suffix == '.pth' else safetensors.torch.save_file
    save(FORMS[form](published), tmp_path / f'weights{suffix}')
    model = InceptionNeXt(ARCH)
    report = load_pretrained(model, tmp_path / f'weights{suffix}')
    assert len(report.loaded) == report.total == NUM_TENSORS
    assert same(model, {key: value for key, value in published.items() if not key.startswith('head.')})


def test_forms_were_counted():
    assert len(FORMS) == 8 and len(WRITTEN) == 11


def test_the_report_names_what_is_new_and_what_is_left_out(published, tmp_path):
    torch.save(published, tmp_path / 'weights.pth')
    model = InceptionNeXt(ARCH, out_norm=dict(type='BN'))
    before = snapshot(model)
    report = load_pretrained(model, tmp_path / 'weights.pth')
    assert str(report) == (
        f'loaded 220 of 220 tensors from {tmp_path / "weights.pth"} '
        '(20 new: out_norm0 (5), out_norm1 (5), out_norm2 (5), out_norm3 (5); 6 left out: head (6))'
    )
    assert same(model, {name: before[name] for name in report.new})


def test_stages_that_were_not_built_are_left_out(published, tmp_path):
    torch.save(published, tmp_path / 'weights.pth')
    report = load_pretrained(InceptionNeXt(ARCH, out_indices=(0, 1)), tmp_path / 'weights.pth')
    assert len(report.loaded) == report.total < NUM_TENSORS
    assert {name.split('.')[0] + name.split('.')[1] for name in report.left_out if name.startswith('stages')} == {
        'stages2',
        'stages3',
    }


def test_output_norms_come_along_from_a_detector(tmp_path):
    source = InceptionNeXt(ARCH, out_norm=dict(type='BN'))
    torch.nn.init.uniform_(source.out_norm2.weight)
    torch.save({'state_dict': prefixed('backbone.')(source.state_dict())}, tmp_path / 'detector.pth')
    model = InceptionNeXt(ARCH, out_norm=dict(type='BN'))
    report = load_pretrained(model, tmp_path / 'detector.pth')
    assert report.new == () and same(model, source.state_dict())


@pytest.mark.parametrize('in_channels', [1, 4, 6])
def test_the_first_convolution_is_adapted_to_the_images(in_channels, published, tmp_path):
    torch.save(published, tmp_path / 'weights.pth')
    model = InceptionNeXt(ARCH, in_channels=in_channels)
    report = load_pretrained(model, tmp_path / 'weights.pth')
    assert report.adapted == ('stem.0.weight',) and 'adapted: stem' in str(report)
    if in_channels != 4:  # the colours cannot be shared out evenly over four channels
        # The same answer to a gray image, whatever the number of its equal channels.
        gray = model.stem[0].weight.sum(1)
        torch.testing.assert_close(gray, published['stem.0.weight'].sum(1), rtol=1e-5, atol=1e-6)


HEADS = FasterNet.CLASSIFIER_PREFIXES


def official_fasternet(arch: str, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """timm's weights under the authors' names: stages and mergings alternate in one list, the head has other names."""
    names = {'conv_head.weight': 'avgpool_pre_head.1.weight', 'classifier.weight': 'head.weight'}
    names |= {'classifier.bias': 'head.bias'}

    def rename(key: str) -> str:
        if merging := re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key):
            return f'stages.{2 * int(merging[1]) - 1}.{merging[2]}'
        if block := re.fullmatch(r'stages\.(\d)\.(blocks.+)', key):
            return f'stages.{2 * int(block[1])}.{block[2]}'
        return names.get(key, key)

    with torch.device(device):
        state = timm.create_model(f'fasternet_{arch}').state_dict()
    return {rename(key): value for key, value in state.items()}


def test_the_official_layout_of_fasternet_is_the_one_of_the_release():
    """Spot checks of the rename above; the number of tensors is that of timm's model."""
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
    torch.save({'state_dict': prefixed('backbone.')({**flat, **norms})}, tmp_path / 'detector.pth')
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
    before = snapshot(model)
    with pytest.raises(CheckpointError, match='1 missing: stages'):
        load_pretrained(model, tmp_path / 'weights.pth')
    assert same(model, before)


def wrong_arch(state):
    return timm.create_model('inception_next_tiny').state_dict()


def renamed(state):
    return {key.replace('token_mixer', 'mixer'): value for key, value in state.items()}


def misshaped(state):
    return {**state, 'stem.0.bias': torch.zeros(7)}


def with_a_key_less(state):
    return {key: value for key, value in state.items() if key != 'stages.2.blocks.3.gamma'}


def with_a_key_more(state):
    return {**state, 'stages.2.blocks.3.beta': torch.zeros(1)}


def of_fasternet(state):
    return timm.create_model('fasternet_t1').state_dict()


def of_fasternet_authors(state):
    return {'model': official_fasternet('t0')}


def of_a_detector_with_fasternet(state):
    return {'state_dict': prefixed('backbone.')(FasterNet('t2', out_norm=dict(type='BN')).state_dict())}


def of_half_a_fasternet(state):
    return FasterNet('s', out_indices=(0, 1)).state_dict()


def of_no_family(state):
    return timm.create_model('resnet18').state_dict()


MISFITS = {
    wrong_arch: ["fits arch 'tiny'", 'stages.0'],
    renamed: ['missing', 'token_mixer', 'unexpected', 'mixer'],
    misshaped: ['stem.0.bias (7,) instead of (40,)'],
    with_a_key_less: ['1 missing: stages.2.blocks.3.gamma'],
    with_a_key_more: ['1 unexpected: stages.2.blocks.3.beta'],
    of_fasternet: ['does not fit InceptionNeXt', 'It looks like FasterNet t1:'],
    of_fasternet_authors: ['does not fit InceptionNeXt', 'It looks like FasterNet t0:'],
    of_a_detector_with_fasternet: ['It looks like FasterNet t2:'],
    of_half_a_fasternet: ['It looks like FasterNet s:'],
    of_no_family: ['Check that the file is of this network'],
}


@pytest.mark.parametrize('change', MISFITS, ids=lambda change: change.__name__)
def test_weights_that_do_not_fit_load_nothing(change, published, tmp_path):
    torch.save(change(published), tmp_path / 'weights.pth')
    check_refused(tmp_path / 'weights.pth', MISFITS[change])


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def write_truncated(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def write_flipped_byte(path, state):
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_evil(path, state):
    torch.save({'state_dict': state, 'note': Evil(str(path.parent / 'ran'))}, path)


def write_evil_legacy(path, state):
    path.write_bytes(pickle.dumps(Evil(str(path.parent / 'ran')), protocol=2))


UNREADABLE = {
    'truncated': (write_truncated, ['no readable checkpoint']),
    'flipped byte': (write_flipped_byte, ['damaged', 'checksum']),
    'empty': (lambda path, state: path.write_bytes(b''), ['no readable checkpoint', '0 bytes']),
    'text': (lambda path, state: path.write_text('<html>404</html>'), ['no readable checkpoint']),
    'missing': (lambda path, state: None, ['does not exist']),
    'runs code': (write_evil, ['mkdir', 'can run code']),
    'runs code, old format': (write_evil_legacy, ['mkdir']),
    'no tensors': (lambda path, state: torch.save({'epoch': 3}, path), ['no state dict', 'epoch']),
    'a list': (lambda path, state: torch.save([1, 2], path), ['no state dict', 'list']),
}


@pytest.mark.parametrize('case', UNREADABLE)
def test_files_that_are_no_weights_are_refused(case, published, tmp_path):
    write, words = UNREADABLE[case]
    write(tmp_path / 'weights.pth', published)
    check_refused(tmp_path / 'weights.pth', words)
    assert not (tmp_path / 'ran').exists()


def test_a_truncated_safetensors_file_is_refused(published, tmp_path):
    file = tmp_path / 'weights.safetensors'
    safetensors.torch.save_file(published, file)
    file.write_bytes(file.read_bytes()[:-100])
    check_refused(file, ['no readable checkpoint'])


def check_refused(source, words):
    model = InceptionNeXt(ARCH)
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, source)
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert same(model, before)


def test_refusals_were_counted():
    assert len(MISFITS) == 10 and len(UNREADABLE) == 9


def test_unknown_names_list_the_records():
    with pytest.raises(CheckpointError, match='inceptionnext_atto'):
        load_pretrained(InceptionNeXt(ARCH), 'inceptionnext_nano')


def test_a_url_is_fetched(published, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    torch.save(published, tmp_path / 'weights.pth')
    report = load_pretrained(InceptionNeXt(ARCH), (tmp_path / 'weights.pth').as_uri())
    assert len(report.loaded) == NUM_TENSORS
    assert (tmp_path / 'hub' / 'checkpoints' / 'weights.pth').exists()


def test_a_url_that_fails_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with pytest.raises(CheckpointError, match='could not be downloaded') as caught:
        load_pretrained(InceptionNeXt(ARCH), (tmp_path / 'absent.pth').as_uri())
    assert str(tmp_path / 'hub' / 'checkpoints' / 'absent.pth') in str(caught.value)


@pytest.fixture
def fake_record(tmp_path, monkeypatch):
    """A record of Atto with a mirror, both in ``tmp_path``; nothing is there yet."""
    record = replace(
        WEIGHTS['inceptionnext_atto'],
        url=(tmp_path / 'official.pth').as_uri(),
        mirrors=((tmp_path / 'mirror.pth').as_uri(),),
    )
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setitem(WEIGHTS, 'fake', record)
    return record


def test_a_mirror_is_tried_when_the_first_address_fails(fake_record, published, tmp_path):
    torch.save(published, tmp_path / 'mirror.pth')
    model = InceptionNeXt(ARCH)
    assert len(load_pretrained(model, 'fake').loaded) == NUM_TENSORS
    assert [path.name for path in (tmp_path / 'hub' / 'checkpoints').iterdir()] == ['mirror.pth']
    (tmp_path / 'mirror.pth').unlink()
    assert len(load_pretrained(model, 'fake').loaded) == NUM_TENSORS  # from the cache, whichever address it came from


def test_every_address_that_fails_is_named(fake_record, tmp_path):
    with pytest.raises(CheckpointError, match='could not be downloaded') as caught:
        load_pretrained(InceptionNeXt(ARCH), 'fake')
    cause, remedy = str(caught.value).split('\n')
    assert fake_record.url in cause and fake_record.mirrors[0] in cause
    assert str(tmp_path / 'hub' / 'checkpoints' / 'official.pth') in remedy


@pytest.mark.parametrize('name', [name for name in WEIGHTS if name.startswith('fasternet')])
def test_the_accuracy_of_fasternet_is_the_one_in_its_file_name(name):
    accuracy = float(WEIGHTS[name].url.split('val_acc1.')[1].removesuffix('.pth'))
    assert WEIGHTS[name].top1 == round(accuracy, 1)


def test_a_record_of_another_family_is_refused_before_it_is_fetched():
    with pytest.raises(CheckpointError, match=r'fasternet_t0.* FasterNet, .*InceptionNeXt\.\n.*inceptionnext_atto'):
        load_pretrained(InceptionNeXt(ARCH), 'fasternet_t0')


def published_network(record: PublishedWeights) -> tuple[int, dict[str, torch.Tensor]]:
    """Parameters with the classifier, and the tensors of timm's or our network without later stages, all 0.5."""
    with torch.device('meta'):
        if record.hub_id:
            model = timm.create_model(record.hub_id.split('/')[1])
        else:  # timm has no such weights; all of them are of ConvNeXt, whose classifier is a norm and a layer
            model = ConvNeXt(record.arch)
            channels = model.out_channels[-1]
            model.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1000))
    num_params = sum(p.numel() for p in model.parameters())
    first = {key: value for key, value in model.state_dict().items() if not re.match(r'stages\.[1-9]', key)}
    return num_params, {key: torch.full(value.shape, 0.5) for key, value in first.items()}


LICENCES = {  # of the repository that a file comes from
    'https://github.com/sail-sg/inceptionnext/': 'Apache-2.0',
    'https://github.com/JierunChen/FasterNet/': 'NOASSERTION',
    'https://dl.fbaipublicfiles.com/convnext/': 'MIT',
}


def classifier_of(record) -> dict[str, torch.Tensor]:
    """The published network on the meta device: timm's, or ours with ConvNeXt's norm and linear layer behind it."""
    with torch.device('meta'):
        if record.hub_id is not None:
            return timm.create_model(record.hub_id.split('/')[1]).state_dict()
        backbone = getattr(backbones, record.family)(record.arch)
        dim = backbone.out_channels[-1]
        norm = {'norm.weight': torch.empty(dim), 'norm.bias': torch.empty(dim)}
        head = {'head.weight': torch.empty(1000, dim), 'head.bias': torch.empty(1000)}
        return {**backbone.state_dict(), **norm, **head}


@pytest.mark.parametrize('name', WEIGHTS)
def test_records_are_true(name, tmp_path, monkeypatch):
    """A record's size is that of the network it names, and its name reaches the authors' file."""
    record = WEIGHTS[name]
    state = classifier_of(record)
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    assert sum(value.numel() for key, value in state.items() if not key.endswith(buffers)) == record.num_params
    assert (record.top1 is None) == name.endswith('_noema') and record.resolution in (224, 384)
    assert record.top1 is None or 70 < record.top1 < 90
    assert [licence for start, licence in LICENCES.items() if record.url.startswith(start)] == [record.licence]
    asked = []

    def download(url: str, target: str) -> None:
        asked.append(url)
        torch.save({key: torch.tensor(0.5).expand(value.shape) for key, value in state.items()}, target)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    # The first stage tells whether the file is read; all stages are compared with timm's elsewhere.
    backbone = getattr(backbones, record.family)(
        record.arch, out_indices=(0,), init_cfg=dict(type='Pretrained', checkpoint=name)
    )
    backbone.init_weights()
    assert asked == [record.url]
    assert all((value == 0.5).all() for value in backbone.state_dict().values() if value.is_floating_point())


def test_every_record_was_tried():
    assert len(WEIGHTS) == 5 + 6 + 6 + 7  # InceptionNeXt, FasterNet, ConvNeXt, its variants


def test_an_explicit_prefix_is_taken_alone(published, tmp_path):
    both = {**prefixed('student.')(published), **prefixed('teacher.')(published)}
    torch.save(both, tmp_path / 'weights.pth')
    model = InceptionNeXt(
        ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), prefix='teacher.')
    )
    model.init_weights()
    assert same(model, {key: value for key, value in published.items() if not key.startswith('head.')})
    with pytest.raises(CheckpointError, match='student'):
        load_pretrained(model, tmp_path / 'weights.pth', prefix='pupil.')


def test_the_log_history_of_mmengine_is_read(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({'message_hub': {'log_scalars': {'loss': buffer}}}, tmp_path / 'checkpoint.pth')
    read = load_file(tmp_path / 'checkpoint.pth')['message_hub']['log_scalars']['loss']
    assert read.mean() == 1.5 and read.current() == 2.0


class Sneaky(HistoryBuffer):
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_in_a_checkpoint_reaches_nothing_but_the_log_statistics(tmp_path):
    torch.save({'x': Sneaky()}, tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError):
        load_file(tmp_path / 'checkpoint.pth')
