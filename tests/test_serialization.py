"""Can any file do harm, come out changed, or disturb others that read at the same time?"""

import io
import os
import random
import re
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoints import Call, checkpoint, equal, read_or_refuse
from mmengine.logging import HistoryBuffer
from torch.serialization import get_safe_globals, safe_globals

from backbones.serialization import CheckpointError, load_file


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / 'checkpoint.pth')
    return tmp_path / 'checkpoint.pth'


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'before PyTorch 1.6'])
def test_what_mmengine_saves_is_read_unchanged(new_format: bool, tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / 'c.pth', _use_new_zipfile_serialization=new_format)
    assert equal(load_file(tmp_path / 'c.pth'), checkpoint())


def test_numpy_1_checkpoints_are_read(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / 'old.pth', 'w') as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'numpy._core.', b'numpy.core.'))
    assert equal(load_file(tmp_path / 'old.pth'), checkpoint())


# Threads.


def test_threads_read_at_the_same_time(saved: Path) -> None:
    with ThreadPoolExecutor(12) as pool:
        read = list(pool.map(load_file, [saved] * 72))
    assert all(equal(content, checkpoint()) for content in read)


def test_others_keep_their_own_rules_meanwhile(saved: Path, tmp_path: Path) -> None:
    """``torch.load`` of other threads accepts no more and no less than it would alone."""
    array = tmp_path / 'array.pth'
    torch.save({'x': np.arange(3)}, array)
    allowed = [np.ndarray, np.dtype, type(np.dtype(np.int64)), np.arange(1).__reduce__()[0]]
    before = set(map(str, get_safe_globals()))
    stop = threading.Event()

    def read_for_ever() -> int:
        count = 0
        while not stop.is_set():
            load_file(saved)
            count += 1
        return count

    def refused() -> bool:
        try:
            torch.load(saved, weights_only=True)
        except UnpicklingError:
            return True
        return False

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read_for_ever) for _ in range(3)]
        try:
            assert all(refused() for _ in range(60))
            with safe_globals(allowed):
                for _ in range(60):
                    assert torch.load(array, weights_only=True)['x'].tolist() == [0, 1, 2]
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
    assert set(map(str, get_safe_globals())) == before


# Hostile pickles. `Call` is what a pickle can ask for: any function with any arguments.


HOSTILE = {
    'pointers from bytes': lambda: Call(np.ndarray, (1,), 'O', b'A' * 64),
    'an array of objects': lambda: np.array([None, 'x'], dtype=object),
    'a type with pointers': lambda: np.dtype([('a', object)]),
    'flags of a type': lambda: Call(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 255)),
    'an array that claims more': lambda: Call(
        np.zeros(1).__reduce__()[0], np.ndarray, (0,), b'b', state=(1, (10**6,), np.dtype('f8'), False, b'1' * 8)
    ),
    'a scalar that claims more': lambda: Call(np.float64(0).__reduce__()[0], np.dtype('f8'), b'123'),
    'a method of the history': lambda: Call(getattr, HistoryBuffer, '__init__'),
    'a way out of the history': lambda: Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
    'memory from nothing': lambda: Call(bytearray, 1 << 20),
    'a shell': lambda: Call(os.system, 'true'),
    'an import': lambda: Call(__import__, 'os'),
    'evaluated text': lambda: Call(eval, '1'),
}


@pytest.mark.parametrize('case', [name for name in HOSTILE if name != 'flags of a type'])
def test_hostile_pickles_are_refused(case: str, tmp_path: Path) -> None:
    torch.save({'x': HOSTILE[case]()}, tmp_path / 'c.pth')
    with pytest.raises(CheckpointError) as caught:
        load_file(tmp_path / 'c.pth')
    assert len(str(caught.value).split('\n')) == 2


def test_numpys_types_stay_as_they_are(tmp_path: Path) -> None:
    torch.save({'x': HOSTILE['flags of a type']()}, tmp_path / 'c.pth')
    read = load_file(tmp_path / 'c.pth')['x']
    assert read == np.dtype('f8') and read.flags == np.dtype('f8').flags == 0


def test_a_checkpoint_cannot_change_the_statistics_of_others(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    history._statistics_methods = {'mean': HistoryBuffer.max, 'own': HistoryBuffer.min}
    torch.save({'x': history}, tmp_path / 'c.pth')
    read = load_file(tmp_path / 'c.pth')['x']
    assert read.mean() == read.statistics('mean') == 2
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics('mean') == 2
    assert 'own' not in HistoryBuffer._statistics_methods


def test_containers_that_hold_themselves_are_no_trap(tmp_path: Path) -> None:
    around: list = [np.arange(2)]
    around.append(around)
    torch.save(around, tmp_path / 'circle.pth')
    read = load_file(tmp_path / 'circle.pth')
    assert read[1] is read and read[0].tolist() == [0, 1]
    level: Any = np.arange(2)
    for _ in range(60):
        level = (level, [level])  # 2**60 paths
    torch.save(level, tmp_path / 'tower.pth')
    top = load_file(tmp_path / 'tower.pth')
    for _ in range(60):
        assert top[1][0] is top[0]
        top = top[0]
    assert top.tolist() == [0, 1]


# Hostile archives.


def repack(source: Path, target: Path, **options: Any) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', **options) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.mark.parametrize('method', [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_parts_are_refused_before_they_are_read(method: int, tmp_path: Path) -> None:
    torch.save({'x': torch.zeros(16 << 20, dtype=torch.uint8)}, tmp_path / 'large.pth')
    repack(tmp_path / 'large.pth', tmp_path / 'bomb.pth', compression=method)
    assert (tmp_path / 'bomb.pth').stat().st_size < 1 << 17
    assert peak_of_refusal(tmp_path / 'bomb.pth', 'compressed') < 1 << 20


def peak_of_refusal(path: Path, words: str) -> int:
    """Bytes that Python held at most while it refused a file."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words):
            load_file(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def directory_entries(content: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b'PK\x01\x02', content)]


def test_parts_that_share_their_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    """A hundred entries of the directory that all name one megabyte."""
    torch.save({'x': torch.zeros(1 << 20, dtype=torch.uint8)}, tmp_path / 'one.pth')
    content = (tmp_path / 'one.pth').read_bytes()
    with zipfile.ZipFile(tmp_path / 'one.pth') as archive:
        entries = archive.infolist()
        large = max(range(len(entries)), key=lambda i: entries[i].file_size)
        start = archive.start_dir
    starts = [*directory_entries(content)[: len(entries)], content.rindex(b'PK\x05\x06')]
    starts = [s for s in starts if s >= start]
    entry = content[starts[large] : starts[large] + 46 + len(entries[large].filename)]
    entry = entry[:30] + struct.pack('<H', 0) + entry[32:]  # without extra field
    copies = b''.join(entry[:46] + f'{i:0{len(entries[large].filename)}}'.encode() for i in range(100))
    end = struct.pack('<4s4H2LH', b'PK\x05\x06', 0, 0, 100, 100, len(copies), start, 0)
    (tmp_path / 'shared.pth').write_bytes(content[:start] + copies + end)
    with pytest.raises(CheckpointError, match=r'parts of \d+ bytes in a file of'):
        load_file(tmp_path / 'shared.pth')


def test_two_parts_of_one_name_are_refused(saved: Path, tmp_path: Path) -> None:
    repack(saved, tmp_path / 'twice.pth')
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / 'twice.pth', 'a') as new:
        name = next(name for name in old.namelist() if name.endswith('data.pkl'))
        with pytest.warns(UserWarning, match='Duplicate'):
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match='two parts with the same name'):
        load_file(tmp_path / 'twice.pth')


@pytest.mark.parametrize('change', [lambda content: b'#!/bin/sh\n' + content, lambda content: content + b'\0' * 30])
def test_an_archive_with_bytes_around_it_is_refused(change: Callable, saved: Path) -> None:
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(CheckpointError):
        load_file(saved)


# Damage: a few hundred ways, always the same ones.


def headers_of_archive(content: bytes) -> list[int]:
    """Positions in the headers of each part, the directory and its end."""
    end = content.rindex(b'PK\x05\x06')
    places = []
    for match in re.finditer(b'PK\x03\x04', content):
        length = sum(struct.unpack('<2H', content[match.start() + 26 : match.start() + 30]))
        places += range(match.start(), match.start() + 30 + length)
    first = directory_entries(content)[0]
    return [*(place for place in places if place < first), *range(first, end + 22)]


def pickle_of_archive(content: bytes) -> list[int]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith('data.pkl'))
        pickled = archive.read(entry)
    start = content.index(pickled)
    return list(range(start, start + len(pickled)))


def damage(content: bytes, places: list[int], chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        place = chance.choice(places)
        damaged[place] = chance.choice((0, 255, damaged[place] ^ 1 << chance.randrange(8), chance.randrange(256)))
    return bytes(damaged)


@pytest.mark.parametrize('where', [headers_of_archive, pickle_of_archive])
def test_a_damaged_archive_is_refused_or_read_unchanged(where: Callable, saved: Path) -> None:
    content, chance = saved.read_bytes(), random.Random(0)
    places, refused = where(content), 0
    for _ in range(400):
        saved.write_bytes(damage(content, places, chance))
        read = read_or_refuse(saved)
        assert read is None or equal(read, checkpoint())
        refused += read is None
    assert refused > 100


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('size', [16, 400])
def test_a_damaged_pickle_without_checksum_raises_nothing_else(size: int, tmp_path: Path) -> None:
    """The format before PyTorch 1.6 has no checksums: what is read may have changed, but the error has one type."""
    path, chance = tmp_path / 'old.pth', random.Random(1)
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    refused = 0
    for _ in range(300):
        path.write_bytes(damage(content, list(range(min(size, len(content)))), chance))
        refused += read_or_refuse(path) is None
    assert refused > 50


def test_a_damaged_pickle_behind_a_right_checksum_raises_nothing_else(saved: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name, chance = next(name for name in parts if name.endswith('data.pkl')), random.Random(2)
    refused = 0
    for _ in range(300):
        with zipfile.ZipFile(tmp_path / 'c.pth', 'w') as archive:
            for part, content in parts.items():
                places = list(range(len(content)))
                archive.writestr(part, damage(content, places, chance) if part == name else content)
        refused += read_or_refuse(tmp_path / 'c.pth') is None
    assert refused > 100


def test_a_damaged_safetensors_header_raises_nothing_else(tmp_path: Path) -> None:
    """The format has no checksums; names and shapes are compared when the weights are loaded into a network."""
    path, chance = tmp_path / 'w.safetensors', random.Random(3)
    safetensors.torch.save_file(checkpoint()['state_dict'], path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], 'little')
    refused = 0
    for _ in range(400):
        path.write_bytes(damage(content, list(range(header)), chance))
        read = read_or_refuse(path)
        assert read is None or all(isinstance(value, torch.Tensor) for value in read.values())
        refused += read is None
    assert refused > 200
