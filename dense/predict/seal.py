"""The hash in an exported ONNX file: written after the export, compared before a runtime opens the file.

It is the SHA-256 hash of the file with zeros in its place, followed by the other files that the file reads.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dense.errors import UserError
from dense.predict.description import METADATA

KEY = 'inceptionnext-dense-sha256'  # of the property with the hash
SEALED = 'sealed'  # key in the description: the file must have the property
EMPTY = '0' * 64
_BLOCK = 1 << 20  # bytes


def seal(path: str | Path, others: Iterable[str | Path] = ()) -> None:
    """Write the hash of a file into it.

    Args:
        path: An ONNX file whose property :data:`KEY` is :data:`EMPTY`.
        others: Files that it takes weights from.
    """
    at = _place(path, EMPTY)
    found = _hash(path, at, others)
    with Path(path).open('r+b') as file:
        file.seek(at)
        file.write(found.encode())
        file.flush()
        os.fsync(file.fileno())


def check_seal(path: str | Path, properties: Mapping[str, str], others: Iterable[str | Path]) -> None:
    """Compare a file with the hash in it. A file that was written without one is accepted.

    Args:
        path: The file.
        properties: Its properties.
        others: Files that it takes weights from.

    Raises:
        UserError: The file, or one of the others, has changed.
    """
    if KEY not in properties and not _must_have(properties.get(METADATA, '')):
        return
    hash_there = properties.get(KEY, '')
    try:
        is_whole = len(hash_there) == len(EMPTY) and _hash(path, _place(path, hash_there), others) == hash_there
    except (OSError, ValueError):  # a file that is missing, or no place for the hash
        is_whole = False
    if not is_whole:
        raise UserError(
            f'{path} is damaged: it does not have the SHA-256 hash that was written into it',
            'copy the file again, or export the model again with `dense export`',
        )


def _must_have(description: str) -> bool:
    try:
        content = json.loads(description)
    except (ValueError, RecursionError):  # refused when the description is read
        return False
    return isinstance(content, dict) and content.get(SEALED) is True


def _place(path: str | Path, value: str) -> int:
    """Return where the value of the property stands. Key and value of a pair have the field numbers 1 and 2."""
    before = KEY.encode() + bytes([0x12, len(EMPTY)])
    content = Path(path).read_bytes()
    if content.count(before + value.encode()) != 1:
        raise ValueError(f'{path} has no single place for its hash')
    return content.index(before + value.encode()) + len(before)


def _hash(path: str | Path, at: int, others: Iterable[str | Path]) -> str:
    content = Path(path).read_bytes()
    found = hashlib.sha256(content[:at])
    found.update(EMPTY.encode())
    found.update(memoryview(content)[at + len(EMPTY) :])
    for other in sorted({Path(one) for one in others}):
        with other.open('rb') as file:
            while block := file.read(_BLOCK):
                found.update(block)
    return found.hexdigest()
