"""Reads what must be known about an ONNX file before a runtime may open it, without the package ``onnx``.

An ONNX file is a Protocol Buffers message: fields, each a key (number and wire type) and a value. Values can be other
messages. The tables follow ``onnx.proto``.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from dense.errors import UserError
from dense.predict.seal import check_seal

# Message -> the numbers of the fields that lead to tensors or to the description, and the messages in them.
_FIELDS = {
    'model': {7: 'graph', 14: 'property', 20: 'training', 25: 'function'},
    'training': {1: 'graph', 2: 'graph'},
    'function': {7: 'node', 11: 'attribute'},
    'graph': {1: 'node', 5: 'tensor', 15: 'sparse'},
    'node': {5: 'attribute'},
    'attribute': {5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse'},
    'sparse': {1: 'tensor', 2: 'tensor'},
    'tensor': {13: 'external'},
}
_PAIRS = ('property', 'external')  # of a key and a value
_MOST_LEVELS = 100  # as Protocol Buffers themselves allow


def read_properties(path: str | Path) -> dict[str, str]:
    """Return the properties of an ONNX file, after checking its hash and the other files that it would read.

    Args:
        path: The file.

    Raises:
        UserError: It is not an ONNX file, is damaged, or names a file outside its own folder.
    """
    path, properties, others = Path(path), {}, set()
    try:
        with path.open('rb') as file:
            # Closed with its last view: an error keeps some of them alive.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for kind, key, value in _entries(memoryview(content), 'model', 0):
            if kind == 'external':
                _check_external(path, value)
                if key == 'location':
                    others.add(path.parent / value)
            else:
                properties[key] = value
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}', 'change the permissions of the file') from error
    except (ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not an ONNX file, or is damaged', 'use a file that `dense export` wrote') from error
    check_seal(path, properties, others)
    return properties


def _check_external(path: Path, name: str) -> None:
    """Raise if a tensor is outside the folder: it could be used to read any file."""
    if '/' in name or '\\' in name or name in ('', '.', '..') or '\0' in name or (path.parent / name).is_symlink():
        raise UserError(
            f'{path} takes weights from {name!r}, which is not a plain file next to it',
            'do not trust this file; `dense export` puts weights into the file or right next to it',
        )


def _entries(message: memoryview, kind: str, level: int) -> Iterator[tuple[str, str, str]]:
    """Yield ``(kind, key, value)`` of every pair of texts below a message."""
    if level > _MOST_LEVELS:
        raise ValueError('too many levels')
    for number, value in _split(message):
        inner = _FIELDS[kind].get(number)
        if inner is None:
            continue
        if value is None:
            raise ValueError('a number instead of a message')
        if inner in _PAIRS:
            texts = {at: bytes(text or b'').decode() for at, text in _split(value) if at in (1, 2)}
            yield inner, texts.get(1, ''), texts.get(2, '')
        else:
            yield from _entries(value, inner, level + 1)


def _split(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield number and value of every field; None for the value of a field of fixed size or a number."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        wire = key & 7
        if wire == 2:
            length, at = _number(message, at)
            if at + length > len(message):
                raise ValueError('cut off')
            yield key >> 3, message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _number(message, at)
            yield key >> 3, None
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield key >> 3, None
        else:
            raise ValueError('unknown kind of field')
    if at != len(message):
        raise ValueError('cut off')


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of 7 bits per byte, lowest first; return it and where the next item starts."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError('endless number')
