"""SHA-256 hashes of files, each in a small file next to its own, as ``sha256sum`` writes and checks them.

``weights.pth.sha256`` holds the hash of ``weights.pth``. A file without one is read as before.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

SUFFIX = '.sha256'
_BLOCK = 1 << 20  # bytes
_LINE = re.compile(r'([0-9a-fA-F]{64})(?:\s.*)?', re.DOTALL)


def sidecar(path: str | Path) -> Path:
    """Return where the hash of a file is kept.

    Args:
        path: The file.
    """
    return Path(f'{path}{SUFFIX}')


def hash_of(path: str | Path) -> str:
    """Return the SHA-256 hash of a file's content, in hexadecimal digits.

    Args:
        path: The file.
    """
    found = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def record(path: str | Path, known: str | None = None) -> None:
    """Write the hash of a file next to it.

    Args:
        path: The file.
        known: Its hash; computed from the file by default.
    """
    place = sidecar(path)
    part = place.with_name(f'{place.name}.{os.getpid()}.part')
    try:
        part.write_text(f'{known or hash_of(path)}  {Path(path).name}\n', encoding='utf-8')
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def forget(path: str | Path) -> None:
    """Remove the hash of a file that is about to be replaced.

    Args:
        path: The file.
    """
    sidecar(path).unlink(missing_ok=True)


def damage(path: str | Path) -> str:
    """Compare a file with the hash next to it.

    Args:
        path: The file.

    Returns:
        What is wrong, in words; empty if the file is whole or no hash is next to it.
    """
    place = sidecar(path)
    if not os.path.isfile(place):
        return ''
    text = ''
    with contextlib.suppress(ValueError):  # not text
        text = place.read_text(encoding='utf-8')
    match = _LINE.fullmatch(text)
    if match is None:
        return f'{place.name} next to it holds no SHA-256 hash'
    found = hash_of(path)
    return '' if found == match[1].lower() else f'its SHA-256 hash is {found[:12]}..., not {match[1][:12]}...'
