"""Does each address lead to its own weights, whole and unchanged, whoever asks at the same time?"""

import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from mmengine.runner import load_checkpoint
from published import ARCH, NUM_TENSORS, official_inceptionnext
from torch import distributed, nn
from web import Web, serve

import dense  # noqa: F401  repairs mmengine's loaders
from backbones import InceptionNeXt
from backbones.download import cached_path, download, locate
from backbones.serialization import CheckpointError, load_file
from backbones.weights import WEIGHTS, load_pretrained, read_weights
from dense.compat import install
from dense.errors import UserError

install()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / 'site'
    folder.mkdir()
    return folder


@pytest.fixture
def web(site: Path) -> Iterator[Web]:
    with serve(site) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that downloads go to; the Hugging Face hub cannot be reached."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hf'))
    return tmp_path / 'hub' / 'checkpoints'


def write(path: Path, value: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save = safetensors.torch.save_file if path.suffix == '.safetensors' else torch.save
    save({'weight': torch.tensor([value])}, path)
    return path


def by_backbones(url: str) -> float:
    return read_weights(url)['weight'].item()


def by_mmengine(url: str) -> float:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1))
    load_checkpoint(model, url, strict=True)
    return model.weight.item()


both_ways = pytest.mark.parametrize('read', [by_backbones, by_mmengine])


@both_ways
def test_two_addresses_with_one_file_name_give_two_files(read: Callable[[str], float], site: Path, web: Web) -> None:
    for i, folder in enumerate(('a', 'b', 'c')):
        write(site / folder / 'model.safetensors', i)
    assert [read(f'{web.url}/{folder}/model.safetensors') for folder in 'abc'] == [0, 1, 2]
    assert [read(f'{web.url}/a/model.safetensors?version={i}') for i in (1, 2)] == [0, 0]
    assert len(web.asked) == 5  # another query may be another file


@both_ways
def test_a_file_is_downloaded_once(read: Callable[[str], float], site: Path, web: Web) -> None:
    write(site / 'w.pth', 1)
    assert [read(f'{web.url}/w.pth') for _ in range(3)] == [1, 1, 1]
    assert web.asked == ['/w.pth']


@both_ways
def test_both_readers_share_one_download(read: Callable[[str], float], site: Path, web: Web) -> None:
    write(site / 'w.pth', 1)
    other = by_mmengine if read is by_backbones else by_backbones
    assert read(f'{web.url}/w.pth') == other(f'{web.url}/w.pth') == 1
    assert len(web.asked) == 1


@both_ways
def test_a_file_url_is_read_where_it_lies(read: Callable[[str], float], tmp_path: Path, cache: Path) -> None:
    path = tmp_path / 'my weights #1.pth'
    for value in (1, 2, 3):
        write(path, value)
        assert read(path.as_uri()) == value
    assert read(f'file://localhost{path.as_uri()[7:]}') == 3
    assert not cache.exists()


@both_ways
def test_the_home_folder_may_be_written_as_a_tilde(
    read: Callable[[str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    write(tmp_path / 'w.pth', 7)
    assert read('~/w.pth') == 7


def test_the_name_of_a_download_can_be_read(cache: Path) -> None:
    path = cached_path('https://example.org/a/inceptionnext_atto.pth')
    assert path.parent == cache
    assert re.fullmatch(r'inceptionnext_atto\.[0-9a-f]{12}\.pth', path.name)
    for url in ('https://h/..', 'https://h/', 'https://h/a%2F..%2Fb.pth', 'https://h/' + 'x' * 500 + '.pth'):
        odd = cached_path(url)
        assert odd.parent == cache and odd.name == Path(odd.name).name and len(odd.name) < 160


@both_ways
def test_a_broken_connection_leaves_nothing(read: Callable[[str], float], site: Path, web: Web, cache: Path) -> None:
    write(site / 'w.pth', 5)
    web.cut = 10
    with pytest.raises(ValueError, match=r'after \d+ of \d+ bytes') as caught:
        read(f'{web.url}/w.pth')
    assert len(str(caught.value).split('\n')) == 2
    assert kept(cache) == []
    web.cut = 0
    assert read(f'{web.url}/w.pth') == 5


KILLED = """
import os, sys, threading
from pathlib import Path
from backbones.download import download

def die():
    while not any(p.stat().st_size for p in Path(sys.argv[2]).glob('*.part')):
        pass
    os.kill(os.getpid(), 9)

threading.Thread(target=die).start()
download(sys.argv[1], folder=sys.argv[2], progress=False)
"""


def test_a_later_download_removes_what_a_killed_one_left(site: Path, web: Web, cache: Path) -> None:
    (site / 'w.pth').write_bytes(bytes(64 << 20))
    write(site / 'other.pth', 5)
    done = subprocess.run([sys.executable, '-c', KILLED, f'{web.url}/w.pth', str(cache)], timeout=120, check=False)
    assert done.returncode == -9
    (left,) = cache.glob('*.part')
    own = [cache / name for name in ('mine.part', f'mine.{"0" * 32}.part')]
    for path in own:
        path.write_text('kept')
    assert by_backbones(f'{web.url}/other.pth') == 5
    assert not left.exists() and all(path.exists() for path in own)


def test_a_download_that_goes_on_is_not_swept(site: Path, web: Web, cache: Path) -> None:
    write(site / 'w.pth', 4)
    write(site / 'other.pth', 5)
    part = cached_path(f'{web.url}/w.pth').with_name(f'{cached_path(f"{web.url}/w.pth").name}.{"0" * 32}.part')
    cache.mkdir(parents=True)
    part.write_text('half')
    with FileLock(f'{cached_path(f"{web.url}/w.pth")}.lock'):
        assert by_backbones(f'{web.url}/other.pth') == 5
        assert part.exists()
    assert by_backbones(f'{web.url}/w.pth') == 4
    assert not part.exists()


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix not in ('.lock', '.sha256'))


@pytest.mark.parametrize(
    'url', ['http://127.0.0.1:1/w.pth', 'http://[bad/w.pth', 'http:///w.pth', 'https://host:port/w.pth', 'http://h/a b']
)
@both_ways
def test_an_address_that_fails_is_an_error_in_two_lines(read: Callable[[str], float], url: str) -> None:
    with pytest.raises(ValueError, match=r'Check|check') as caught:
        read(url)
    assert isinstance(caught.value, CheckpointError | UserError)
    cause, remedy = str(caught.value).split('\n')
    assert url in cause and remedy


@pytest.mark.parametrize('url', ['file://server/share/w.pth', 'file://w.pth'])
def test_a_file_of_another_machine_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match='machine') as caught:
        read_weights(url)
    assert len(str(caught.value).split('\n')) == 2


def named_by_hash(path: Path, hexdigits: str | None = None) -> Path:
    digest = hexdigits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(path.with_name(f'{path.stem}-{digest}{path.suffix}'))


@both_ways
def test_the_hash_in_a_file_name_is_checked(read: Callable[[str], float], site: Path, web: Web, cache: Path) -> None:
    good = named_by_hash(write(site / 'good.pth', 1))
    assert read(f'{web.url}/{good.name}') == 1
    before = kept(cache)
    real = hashlib.sha256(write(site / 'bad.pth', 2).read_bytes()).hexdigest()[:8]
    bad = named_by_hash(site / 'bad.pth', 'abcdef12')
    with pytest.raises(ValueError, match='abcdef12') as caught:
        read(f'{web.url}/{bad.name}')
    assert real in str(caught.value) and len(str(caught.value).split('\n')) == 2
    assert kept(cache) == before


def test_a_date_in_a_file_name_is_no_hash(site: Path, web: Web) -> None:
    assert by_backbones(f'{web.url}/{named_by_hash(write(site / "w.pth", 3), "20240131").name}') == 3


@pytest.mark.parametrize('change', [str, str.upper], ids=['as published', 'in capitals'])
def test_the_hash_of_a_record_is_checked(
    change: Callable[[str], str], site: Path, web: Web, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(official_inceptionnext(ARCH), site / 'atto.pth')
    digest = hashlib.sha256((site / 'atto.pth').read_bytes()).hexdigest()
    record = replace(WEIGHTS['inceptionnext_atto'], url=f'{web.url}/atto.pth', hub_id=None)
    monkeypatch.setitem(WEIGHTS, 'right', replace(record, sha256=change(digest)))
    monkeypatch.setitem(WEIGHTS, 'wrong', replace(record, sha256='0' * 64))
    with pytest.raises(CheckpointError, match='0' * 64) as caught:
        load_pretrained(InceptionNeXt(ARCH), 'wrong')
    assert digest in str(caught.value) and len(str(caught.value).split('\n')) == 2 and kept(cache) == []
    assert len(load_pretrained(InceptionNeXt(ARCH), 'right').loaded) == NUM_TENSORS


def download_in_process(url: str, folder: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(hashlib.sha256(download(url, folder=folder, progress=False).read_bytes()).hexdigest())


def test_processes_that_ask_at_once_get_one_download(site: Path, web: Web, tmp_path: Path) -> None:
    path = write(site / 'w.pth', 1)
    web.delay = 0.3
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (f'{web.url}/w.pth', str(tmp_path / 'shared'), barrier, results)
    processes = [context.Process(target=download_in_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(timeout=30)
    assert found == {hashlib.sha256(path.read_bytes()).hexdigest()}
    assert len(web.asked) == 1


def test_threads_that_ask_at_once_get_one_download(site: Path, web: Web) -> None:
    write(site / 'w.pth', 4)
    web.delay = 0.2
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(by_backbones, [f'{web.url}/w.pth'] * 8)) == [4] * 8
    assert len(web.asked) == 1


def load_on_rank_0(rank: int, store: str, url: str, results: Any) -> None:
    distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    os.environ['LOCAL_RANK'] = str(rank)
    if rank == 0:  # the other one does not ask for weights
        results.put((by_backbones(f'{url}/a.pth'), by_mmengine(f'{url}/b.pth')))
    distributed.barrier()
    results.put('arrived')


def test_one_rank_alone_may_load(site: Path, web: Web, tmp_path: Path) -> None:
    write(site / 'a.pth', 1)
    write(site / 'b.pth', 2)
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    arguments = (str(tmp_path / 'store'), web.url, results)
    ranks = [context.Process(target=load_on_rank_0, args=(rank, *arguments)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    got = [results.get(timeout=30) for _ in range(3)]  # two processes put them in, in any order
    assert sorted(got, key=str) == [(1, 2), 'arrived', 'arrived']
    for process in ranks:
        process.join(timeout=30)


class Absent(EntryNotFoundError):
    """What the library raises for a file that a repository does not have, without the answer of a server."""

    def __init__(self, name: str) -> None:
        Exception.__init__(self, f'404: {name}')


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the Hugging Face hub, files at OWNER/NAME/REVISION/FILE."""
    root = tmp_path / 'hf_server'
    root.mkdir()

    def fetch(repo: str, name: str, *, revision: str | None = None) -> str:
        if not (root / repo).is_dir():
            raise LocalEntryNotFoundError('cannot be reached')
        path = root / repo / (revision or 'main') / name
        if not path.is_file():
            raise Absent(name)
        return str(path)

    monkeypatch.setattr('backbones.download.hf_hub_download', fetch)
    return root


HUB_SOURCES = {
    'hf-hub:o/safe': 1,
    'hf_hub:o/safe': 1,
    'hf-hub:o/safe@v2': 2,
    'hf-hub:o/safe@refs/pr/3': 3,
    'hf-hub:o/safe/other/w.safetensors': 4,
    'hf-hub:o/safe@v2/other/w.safetensors': 5,
    'hf-hub:o/pickled': 6,
}


@pytest.mark.parametrize('source', HUB_SOURCES)
@both_ways
def test_sources_of_the_hugging_face_hub(read: Callable[[str], float], source: str, hub: Path) -> None:
    write(hub / 'o/safe/main/model.safetensors', 1)
    write(hub / 'o/safe/v2/model.safetensors', 2)
    write(hub / 'o/safe/refs/pr/3/model.safetensors', 3)
    write(hub / 'o/safe/main/other/w.safetensors', 4)
    write(hub / 'o/safe/v2/other/w.safetensors', 5)
    torch.save({'weight': torch.tensor([6.0])}, write(hub / 'o/pickled/main/pytorch_model.bin', 6))
    assert read(source) == HUB_SOURCES[source]


@pytest.mark.parametrize('source', ['hf-hub:', 'hf-hub:name', 'hf-hub:o/n@', 'hf-hub:o/n/', 'hf-hub://o/n'])
def test_a_hub_source_that_is_misspelt_says_how_it_is_written(source: str) -> None:
    with pytest.raises(CheckpointError, match='hf-hub:OWNER/NAME') as caught:
        read_weights(source)
    assert len(str(caught.value).split('\n')) == 2


def test_a_hub_that_cannot_be_reached_fails_in_two_lines() -> None:
    with pytest.raises(CheckpointError, match='could not be fetched from the Hugging Face hub') as caught:
        read_weights('hf-hub:o/absent')
    assert len(str(caught.value).split('\n')) == 2


def test_a_hub_file_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    commit = 'a' * 40
    model = tmp_path / 'hf' / 'models--o--n'
    write(model / 'snapshots' / commit / 'model.safetensors', 8)
    (model / 'refs').mkdir()
    (model / 'refs' / 'main').write_text(commit)
    assert locate('hf-hub:o/n').is_file()
    assert by_backbones('hf-hub:o/n') == 8


def test_a_record_falls_back_to_the_hub(hub: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(WEIGHTS['inceptionnext_atto'], url=f'{web.url}/gone.pth', hub_id='o/atto')
    monkeypatch.setitem(WEIGHTS, 'fake', record)
    with pytest.raises(CheckpointError, match=r'404.*; o/atto could not be fetched') as caught:
        load_pretrained(InceptionNeXt(ARCH), 'fake')
    assert len(str(caught.value).split('\n')) == 2
    (hub / 'o/atto/main').mkdir(parents=True)
    safetensors.torch.save_file(official_inceptionnext(ARCH), hub / 'o/atto/main/model.safetensors')
    assert len(load_pretrained(InceptionNeXt(ARCH), 'fake').loaded) == NUM_TENSORS


def test_a_file_that_changes_in_the_cache_is_refused(site: Path, web: Web, cache: Path) -> None:
    write(site / 'w.pth', 5)
    path = download(f'{web.url}/w.pth', folder=cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='damaged'):
        load_file(download(f'{web.url}/w.pth', folder=cache))
