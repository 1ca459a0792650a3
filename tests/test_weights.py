"""Are published weights loaded whole, or refused with a reason?"""

import os
import pickle

import pytest
import safetensors.torch
import timm
import torch
from mmengine.logging import HistoryBuffer
from published import ARCH, NUM_TENSORS, official_fasternet, official_inceptionnext

from backbones import FasterNet, InceptionNeXt, weights
from backbones.serialization import CheckpointError, load_file
from backbones.weights import load_pretrained


@pytest.fixture(scope='module')
def published() -> dict[str, torch.Tensor]:
    return official_inceptionnext(ARCH)


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
    'state_dict_ema': lambda state: {'state_dict_ema': state, 'epoch': 1},
    'model_ema': lambda state: {'model_ema': state, 'epoch': 1},
    'module.': prefixed('module.'),
    'backbone.': prefixed('backbone.'),
    'a detector': lambda state: {'state_dict': {**prefixed('backbone.')(state), 'neck.conv.weight': torch.zeros(1)}},
    'a compiled model under DDP': lambda state: {'model': prefixed('module._orig_mod.backbone.')(state)},
}


def test_every_entry_that_is_looked_into_is_tried():
    assert set(weights.ENTRIES) <= set(FORMS)


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


def of_timm(name: str) -> dict[str, torch.Tensor]:
    """Zeros with the names and shapes of a timm model, as small a file as can be."""
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    return {key: torch.tensor(0.0).expand(value.shape) for key, value in state.items()}


def wrong_arch(state):
    return of_timm('inception_next_tiny')


def renamed(state):
    return {key.replace('token_mixer', 'mixer'): value for key, value in state.items()}


def misshaped(state):
    return {**state, 'stem.0.bias': torch.zeros(7)}


def with_a_key_less(state):
    return {key: value for key, value in state.items() if key != 'stages.2.blocks.3.gamma'}


def with_a_key_more(state):
    return {**state, 'stages.2.blocks.3.beta': torch.zeros(1)}


def of_fasternet(state):
    return of_timm('fasternet_t1')


def of_fasternet_authors(state):
    return {'model': official_fasternet('t0')}


def of_a_detector_with_fasternet(state):
    return {'state_dict': prefixed('backbone.')(FasterNet('t2', out_norm=dict(type='BN')).state_dict())}


def of_half_a_fasternet(state):
    return FasterNet('s', out_indices=(0, 1)).state_dict()


def of_convnext(state):
    return {'model': of_timm('convnext_small')}


def of_no_family(state):
    return of_timm('resnet18')


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
    of_convnext: ['It looks like ConvNeXt small:'],
    of_no_family: ['Check that the file belongs to this network'],
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
    'truncated': (write_truncated, ['not a readable checkpoint']),
    'flipped byte': (write_flipped_byte, ['damaged', 'checksum']),
    'empty': (lambda path, state: path.write_bytes(b''), ['not a readable checkpoint', '0 bytes']),
    'text': (lambda path, state: path.write_text('<html>404</html>'), ['not a readable checkpoint']),
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
    check_refused(file, ['not a readable checkpoint'])


def check_refused(source, words):
    model = InceptionNeXt(ARCH)
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, source)
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert same(model, before)


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
