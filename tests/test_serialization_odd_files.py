"""Are files that are no weights refused in two lines, whatever they are and whatever they hold?"""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import Call, checkpoint, equal, read_or_refuse

from backbones import FasterNet
from backbones.serialization import CheckpointError, load_file
from backbones.weights import load_pretrained, read_weights


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / 'checkpoint.pth')
    return tmp_path / 'checkpoint.pth'


# Files that are not what their names say.


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Call(os.system, 'true'), protocol=2))


def write_archive(path: Path) -> None:
    torch.save({'x': torch.ones(1)}, path)


def write_huge_header(path: Path) -> None:
    path.write_bytes(struct.pack('<Q', 1 << 62) + b'{}')


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to('nowhere')


def make_circular_link(path: Path) -> None:
    path.symlink_to(path)


ODD_FILES = [
    write_pickle,
    write_archive,
    write_huge_header,
    make_folder,
    make_pipe,
    make_dangling_link,
    make_circular_link,
]


@pytest.mark.parametrize('make', ODD_FILES, ids=lambda make: make.__name__)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', ''])
def test_odd_files_are_refused(make: Callable, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'weights{suffix}'
    make(path)
    if make is write_archive and suffix != '.safetensors':
        assert load_file(path)['x'] == 1
        return
    assert read_or_refuse(path) is None


@pytest.mark.parametrize('name', ['x' * 5000, 'a\0b', '', 'with\nbreak.pth'])
def test_odd_names_are_refused(name: str, tmp_path: Path) -> None:
    assert read_or_refuse(tmp_path / name) is None
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / name)


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='is a folder'):
        load_file(tmp_path)


@pytest.mark.parametrize('name', ['weights', 'weights.bin', 'weights.pth', 'WEIGHTS.SAFETENSORS'])
def test_safetensors_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    weights = checkpoint()['state_dict']
    safetensors.torch.save_file(weights, tmp_path / name)
    assert equal(load_file(tmp_path / name), weights)


def test_a_link_to_weights_is_followed(saved: Path, tmp_path: Path) -> None:
    (tmp_path / 'link.pth').symlink_to(saved)
    assert equal(load_file(tmp_path / 'link.pth'), checkpoint())


# Tensors and names that are no weights.

NO_WEIGHTS = {
    'numbers as names': lambda: {0: torch.ones(1), 1: torch.ones(1)},
    'sparse': lambda: {'stem.0.weight': torch.eye(3).to_sparse()},
    'without data': lambda: {'stem.0.weight': torch.empty(3, device='meta')},
    'quantised': lambda: {'w': torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', NO_WEIGHTS)
def test_tensors_that_cannot_be_weights_are_refused(case: str, tmp_path: Path) -> None:
    torch.save(NO_WEIGHTS[case](), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / 'w.pth')
    assert len(str(caught.value).split('\n')) == 2


def test_names_from_a_file_cannot_break_the_message(tmp_path: Path) -> None:
    torch.save({f'a\nb\x1b[2J{i}' + 'x' * 10_000: torch.ones(1) for i in range(3)}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(FasterNet('t0'), tmp_path / 'w.pth')
    cause, remedy = str(caught.value).split('\n')
    assert cause.isprintable() and remedy.isprintable() and len(cause) < 3000


def test_a_kernel_that_claims_to_be_huge_is_not_adapted(tmp_path: Path) -> None:
    """A few bytes, repeated by strides to 40 * 3 * 2**28 numbers, for a network with one input channel."""
    model = FasterNet('t0', in_channels=1)
    state = FasterNet('t0').state_dict()
    name = f'{model.input_layers[0]}.weight'
    state[name] = torch.zeros(1).expand(state[name].shape[0], 3, 1 << 14, 1 << 14)
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='of another shape'):
        load_pretrained(model, tmp_path / 'w.pth')


@pytest.mark.skipif(torch.cuda.is_available(), reason='the device is there')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1', torch.device('cuda')], ids=str)
def test_a_device_that_is_not_there_is_not_blamed_on_the_file(device: Any, saved: Path) -> None:
    with pytest.raises(CheckpointError, match='finds no CUDA device here'):
        load_file(saved, map_location=device)
