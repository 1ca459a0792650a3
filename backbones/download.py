"""From where weights are to a file on this machine: paths, URLs and the Hugging Face hub.

What is downloaded is kept, each address in a file of its own, and fetched once. Any number of processes and threads may
ask for the same address at the same time; nobody has to wait for a process that does not.
"""

import hashlib
import os
import re
import uuid
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tqdm import tqdm

from backbones.serialization import CheckpointError, first_line, one_line

# A revision may hold a slash in these two forms only.
_HUB_SOURCE = re.compile(
    r'hf[-_]hub:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<file>.+))?'
)
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
_SHA256_IN_NAME = re.compile(r'-([0-9a-f]{8}|[0-9a-f]{64})\.[a-z]+$')
_DATE = re.compile(r'(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])')
_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20  # bytes


def locate(source: str | Path, *, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Return the file that a source means, after downloading it if need be.

    Args:
        source: A path (``~`` is the home folder), which need not exist; a ``file://`` URL, which is read where it lies;
            an ``http://`` or ``https://`` URL; or ``hf-hub:OWNER/NAME``, with ``@REVISION`` and ``/FILE`` behind it if
            they are not the hub's defaults.
        folder: Where downloads by URL are kept; by default the one of ``torch.hub``.
        progress: Show a progress bar.

    Raises:
        CheckpointError: The source cannot be fetched.
    """
    text = str(source)
    scheme = text.partition(':')[0].lower() if ':' in text else ''
    if scheme in ('http', 'https'):
        return download(text, folder=folder, progress=progress)
    if scheme == 'file':
        return _path_of_file_url(text)
    if scheme in ('hf-hub', 'hf_hub'):
        return _locate_in_hub(text)
    return Path(os.path.expanduser(text))


def cached_path(url: str, folder: str | Path | None = None) -> Path:
    """Return where the file behind a URL is kept: its name, and between stem and suffix a hash of the whole URL.

    Args:
        url: The address.
        folder: As in :func:`locate`.
    """
    name = PurePosixPath(re.sub(r'[^a-zA-Z0-9_.=+-]', '_', PurePosixPath(urlsplit(url).path).name))
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / 'checkpoints'
    return folder / f'{name.stem[:100] or "weights"}.{key}{name.suffix[:20]}'


def download(url: str, *, sha256: str | None = None, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Download a file unless it is there, and return its path.

    Args:
        url: ``http://`` or ``https://`` address.
        sha256: Hash of the content, or its first digits. If there is none but the file's name ends in the eight digits
            of torch.hub's convention (``name-abcdef12.pth``), those count.
        folder: As in :func:`locate`.
        progress: Show a progress bar.

    Raises:
        CheckpointError: The download failed, or its content has another hash. Nothing is kept then.
    """
    try:
        path = cached_path(url, folder)
    except ValueError as error:
        raise CheckpointError(
            f'{one_line(url)} is no address: {first_line(error)}.\nCheck how it is written.'
        ) from error
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            if not path.is_file():  # nobody else has fetched it meanwhile
                _fetch(url, path, sha256 or _hash_in_name(url), progress)
    except CheckpointError:
        raise
    # URLError and HTTPError are OSErrors; NotImplementedError is raised where the file system has no locks.
    except (OSError, HTTPException, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f'{one_line(url)} could not be downloaded: {first_line(error)}.\n'
            f'Check the address and the network, or download it elsewhere to {path}.'
        ) from error
    return path


def download_from_hub(repo: str, file: str | None = None, revision: str | None = None) -> Path:
    """Return a file of a model on the Hugging Face hub, from the library's cache if it is there.

    Args:
        repo: ``OWNER/NAME``.
        file: Name in the repository; by default its weights, ``model.safetensors`` or ``pytorch_model.bin``.
        revision: Branch, tag or commit; by default the hub's.

    Raises:
        CheckpointError: It cannot be had.
    """
    try:
        return Path(_hub_file(repo, (file,) if file else _HUB_FILES, revision))
    except Exception as error:  # the library's errors, and those of its HTTP client, have no ancestor in common
        raise CheckpointError(
            f'{one_line(repo)} could not be fetched from the Hugging Face hub: {first_line(error)}.\n'
            f'Check the name and the network, or download https://huggingface.co/{one_line(repo)} elsewhere and give '
            'the file.'
        ) from error


def _hub_file(repo: str, names: tuple[str, ...], revision: str | None) -> str:
    for name in names:
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return cached
    for name in names[:-1]:
        try:
            return hf_hub_download(repo, name, revision=revision)
        except LocalEntryNotFoundError:  # the hub cannot be reached
            raise
        except EntryNotFoundError:
            continue
    return hf_hub_download(repo, names[-1], revision=revision)


def _locate_in_hub(source: str) -> Path:
    match = _HUB_SOURCE.fullmatch(source)
    if match is None:
        raise CheckpointError(
            f'{one_line(source)!r} names no model of the Hugging Face hub.\n'
            'Write hf-hub:OWNER/NAME, hf-hub:OWNER/NAME@REVISION or hf-hub:OWNER/NAME/FILE.'
        )
    return download_from_hub(match['repo'], match['file'], match['revision'])


def _path_of_file_url(url: str) -> Path:
    rest = url.partition(':')[2]
    host, slash, path = rest[2:].partition('/') if rest.startswith('//') else ('', '', rest)
    if host not in ('', 'localhost'):
        raise CheckpointError(
            f'{one_line(url)!r} names a file on the machine {one_line(host)!r}.\n'
            'Write file:/// and the whole path, or the path alone.'
        )
    return Path(url2pathname(f'{slash}{path}'))


def _hash_in_name(url: str) -> str | None:
    match = _SHA256_IN_NAME.search(urlsplit(url).path)
    if match is None or _DATE.fullmatch(match[1]):  # eight digits of a day are no hash
        return None
    return match[1]


def _fetch(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    part = path.with_name(f'{path.name}.{uuid.uuid4().hex}.part')
    try:
        found = _stream(url, part, progress)
        if sha256 and not found.startswith(sha256.lower()):
            raise CheckpointError(
                f'{one_line(url)} has the SHA-256 hash {found[: len(sha256)]}, expected is {sha256}; the file was not '
                f'kept.\nTry again later; if you trust the file as it is, download it elsewhere to {path}.'
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, part: Path, progress: bool) -> str:
    """Write what a URL gives to a new file and return its SHA-256 hash."""
    sha256, received = hashlib.sha256(), 0
    request = Request(url, headers={'User-Agent': 'inceptionnext-dense'})
    with urlopen(request, timeout=_TIMEOUT) as response, part.open('xb') as file:
        length = response.headers.get('Content-Length')
        expected = int(length) if length else None
        with tqdm(total=expected, unit='B', unit_scale=True, unit_divisor=1024, disable=not progress) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                sha256.update(block)
                received += len(block)
                bar.update(len(block))
    if expected is not None and received != expected:
        raise OSError(f'the connection broke after {received} of {expected} bytes')
    return sha256.hexdigest()
