"""Find weight files by path, URL or name on the Hugging Face hub, and download them if needed.

Each address is downloaded once and cached in its own file. Any number of processes and threads may request the same
address at the same time, and a process never waits for one that makes no request.
"""

import contextlib
import hashlib
import os
import re
import uuid
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

import torch
from filelock import FileLock, Timeout
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tqdm import tqdm

from backbones.checksums import forget, record
from backbones.serialization import CheckpointError, first_line, one_line

# A revision may hold a slash in these two forms only.
_HUB_SOURCE = re.compile(
    r'hf[-_]hub:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<file>.+))?'
)
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
# Written by `_fetch`: the name in the cache, which ends with a part of a hash, and a number.
_PART = re.compile(r'(?P<cached>.+\.[0-9a-f]{12}(?:\.[a-zA-Z0-9_=+-]+)?)\.[0-9a-f]{32}\.part')
_SHA256_IN_NAME = re.compile(r'-([0-9a-f]{8}|[0-9a-f]{64})\.[a-z]+$')
_DATE = re.compile(r'(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])')
_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20  # bytes


def locate(source: str | Path, *, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Return the path of the file that a source names; download the file if needed.

    Args:
        source: A path (``~`` is the home folder), which need not exist; a ``file://`` URL, which is read in place; an
            ``http://`` or ``https://`` URL; or ``hf-hub:OWNER/NAME``, optionally followed by ``@REVISION`` and
            ``/FILE``.
        folder: Cache for downloads by URL; by default that of ``torch.hub``.
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
    if '://' in text:
        raise CheckpointError(
            f'{one_line(text)!r} has the scheme {one_line(scheme)!r}, which is not supported.\n'
            'Use http://, https://, file:// or hf-hub:OWNER/NAME, or download the file and give its path.'
        )
    return Path(os.path.expanduser(text))


def cached_path(url: str, folder: str | Path | None = None) -> Path:
    """Return the cache path for a URL: the file's name, with a hash of the whole URL between stem and suffix.

    Args:
        url: The address.
        folder: As in :func:`locate`.
    """
    name = PurePosixPath(re.sub(r'[^a-zA-Z0-9_.=+-]', '_', PurePosixPath(urlsplit(url).path).name))
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / 'checkpoints'
    return folder / f'{name.stem[:100] or "weights"}.{key}{name.suffix[:20]}'


def download(url: str, *, sha256: str | None = None, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Download a file unless it is in the cache, and return its path.

    Args:
        url: ``http://`` or ``https://`` address.
        sha256: Hash of the content, or its first digits. By default, the digits at the end of the file's name, if it
            follows torch.hub's convention (``name-abcdef12.pth``).
        folder: As in :func:`locate`.
        progress: Show a progress bar.

    Raises:
        CheckpointError: The download failed, or its content has another hash. Then nothing is kept.
    """
    try:
        path = cached_path(url, folder)
    except ValueError as error:
        raise CheckpointError(
            f'{one_line(url)} is not a valid URL: {first_line(error)}.\nCheck the spelling.'
        ) from error
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with FileLock(f'{path}.lock'):
            if not path.is_file():  # another process may have fetched it meanwhile
                _fetch(url, path, sha256 or _hash_in_name(url), progress)
    except CheckpointError:
        raise
    # URLError and HTTPError are OSErrors; NotImplementedError is raised if the file system has no locks.
    except (OSError, HTTPException, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f'{one_line(url)} could not be downloaded: {first_line(error)}.\n'
            f'Check the address and the network, or download it elsewhere and save it as {path}.'
        ) from error
    return path


def download_from_hub(repo: str, file: str | None = None, revision: str | None = None) -> Path:
    """Return a file of a model on the Hugging Face hub, from the library's cache if it is there.

    Args:
        repo: ``OWNER/NAME``.
        file: Name in the repository; by default its weights, ``model.safetensors`` or ``pytorch_model.bin``.
        revision: Branch, tag or commit; by default the hub's.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    try:
        return Path(_hub_file(repo, (file,) if file else _HUB_FILES, revision))
    except Exception as error:  # the errors of the library and of its HTTP client have no common base class
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
            f'{one_line(source)!r} is not a name of a model on the Hugging Face hub.\n'
            'Write hf-hub:OWNER/NAME, hf-hub:OWNER/NAME@REVISION or hf-hub:OWNER/NAME/FILE.'
        )
    return download_from_hub(match['repo'], match['file'], match['revision'])


def _path_of_file_url(url: str) -> Path:
    rest = url.partition(':')[2]
    host, slash, path = rest[2:].partition('/') if rest.startswith('//') else ('', '', rest)
    if host not in ('', 'localhost'):
        raise CheckpointError(
            f'{one_line(url)!r} names a file on another machine, {one_line(host)!r}.\n'
            'Write file:/// and the whole path, or only the path.'
        )
    return Path(url2pathname(f'{slash}{path}'))


def _hash_in_name(url: str) -> str | None:
    match = _SHA256_IN_NAME.search(urlsplit(url).path)
    if match is None or _DATE.fullmatch(match[1]):  # eight digits of a date are not a hash
        return None
    return match[1]


def _fetch(url: str, path: Path, sha256: str | None, progress: bool) -> None:
    part = path.with_name(f'{path.name}.{uuid.uuid4().hex}.part')
    try:
        found = _stream(url, part, progress)
        if sha256 and not found.startswith(sha256.lower()):
            raise CheckpointError(
                f'{one_line(url)} has the SHA-256 hash {found[: len(sha256)]}, but expected is {sha256}; the file was '
                f'not kept.\nTry again later. If you trust this file, download it elsewhere and save it as {path}.'
            )
        forget(path)
        os.replace(part, path)
        record(path, found)  # compared whenever the file is read from the cache
    finally:
        part.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what downloads of killed processes left. A process holds the lock of its download as long as it lives.

    Locks themselves stay: another process may have opened one, and would then wait for a file that is gone.
    """
    for part in folder.glob('*.part'):
        match = _PART.fullmatch(part.name)
        if match is not None:
            with contextlib.suppress(Timeout, OSError), FileLock(folder / f'{match["cached"]}.lock', timeout=0):
                part.unlink(missing_ok=True)


def _stream(url: str, part: Path, progress: bool) -> str:
    """Download a URL to a new file and return its SHA-256 hash."""
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
