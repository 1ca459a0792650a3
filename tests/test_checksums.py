"""Is a file of ours that has changed by one byte refused, in every format, and a foreign one still read?"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from onnx import helper
from onnx_files import METADATA, external_tensor, sealed, segmentor

from backbones import FasterNet, checksums
from backbones.serialization import CheckpointError, load_file
from backbones.weights import load_pretrained
from dense.errors import UserError
from dense.predict.exported import ExportedModel
from dense.predict.onnx_file import read_properties
from dense.predict.seal import KEY, SEALED

STATE = dict(a=torch.arange(600.0), b=torch.ones(3, 5))


def write_legacy(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    'w.pth': torch.save,
    'legacy.pth': write_legacy,
    'w.safetensors': safetensors.torch.save_file,
}


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << at % 8
    return bytes(changed)


@pytest.mark.parametrize('name', WRITERS)
def test_a_flipped_byte_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](STATE, path)
    checksums.record(path)
    assert torch.equal(load_file(path)['a'], STATE['a'])
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 40):
        path.write_bytes(flipped(content, int(at)))
        with pytest.raises(CheckpointError, match='damaged') as caught:
            load_file(path)
        assert len(str(caught.value).splitlines()) == 2
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match='damaged'):
        load_file(path)


@pytest.mark.parametrize('name', WRITERS)
def test_a_file_without_a_hash_is_read(name: str, tmp_path: Path) -> None:
    WRITERS[name](STATE, tmp_path / name)
    assert torch.equal(load_file(tmp_path / name)['a'], STATE['a'])


@pytest.mark.parametrize('text', ['', 'no hash', 'ab' * 31, b'\xff\xfe'])
def test_a_damaged_hash_is_refused(text: str | bytes, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / 'w.pth')
    checksums.sidecar(tmp_path / 'w.pth').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match='holds no SHA-256 hash'):
        load_file(tmp_path / 'w.pth')


@pytest.mark.skipif(shutil.which('sha256sum') is None, reason='compares with the command')
def test_other_programs_write_and_check_the_same(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / 'w.pth')
    checksums.record(tmp_path / 'w.pth')
    run = dict(cwd=tmp_path, capture_output=True, text=True)
    assert subprocess.run(['sha256sum', '-c', 'w.pth.sha256'], **run).stdout == 'w.pth: OK\n'
    line = subprocess.run(['sha256sum', 'w.pth'], **run).stdout
    (tmp_path / 'w.pth.sha256').write_text(line)
    assert 'a' in load_file(tmp_path / 'w.pth')


def test_weights_for_a_backbone_are_compared(tmp_path: Path) -> None:
    backbone, path = FasterNet('t0'), tmp_path / 'w.safetensors'
    safetensors.torch.save_file(backbone.state_dict(), path)
    checksums.record(path)
    load_pretrained(backbone, path)
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 1))
    with pytest.raises(CheckpointError, match='damaged'):
        load_pretrained(backbone, path)


def test_every_byte_of_an_exported_file_counts(tmp_path: Path) -> None:
    path = sealed(tmp_path / 'm.onnx')
    ExportedModel(path)
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(flipped(content, at))
        with pytest.raises(UserError) as caught:
            ExportedModel(path)
        assert len(str(caught.value).splitlines()) == 2


def test_weights_next_to_an_exported_file_count(tmp_path: Path) -> None:
    weights = tmp_path / 'm.onnx.data'
    weights.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    node = helper.make_node('Constant', [], ['unused'], value=external_tensor(weights.name))
    path = sealed(tmp_path / 'm.onnx', weights, extra=(node,))
    ExportedModel(path)
    weights.write_bytes(flipped(weights.read_bytes(), 3))
    with pytest.raises(UserError, match='damaged'):
        ExportedModel(path)


def test_an_exported_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = segmentor(tmp_path / 'm.onnx')
    assert KEY not in read_properties(path) and SEALED not in json.loads(read_properties(path)[METADATA])
    ExportedModel(path)
