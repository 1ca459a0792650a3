"""What has to be known of an ONNX file before a runtime may open it, read without the package ``onnx``.

An ONNX file is a message of Protocol Buffers: fields, each a key (number and wire type) and a value. Messages lie in
the values of other messages. The tables follow ``onnx.proto``.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from dense.errors import UserError

# Message to the numbers of those fields that lead to tensors or to the description, and the messages in them.
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
    """Return the properties of an ONNX file, after a look at the files that it wants to read besides.

    Args:
        path: The file.

    Raises:
        UserError: It is no ONNX file, or names a file that does not lie in its own folder.
    """
    path, properties = Path(path), {}
    try:
        with path.open('rb') as file:
            # Closed with the last view of it: an error holds on to some.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for kind, key, value in _entries(memoryview(content), 'model', 0):
            if kind == 'external':
                _check_external(path, value)
            else:
                properties[key] = value
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}', 'change the rights of the file') from error
    except (ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is no ONNX file, or is damaged', 'give a file that `dense export` wrote') from error
    return properties


def _check_external(path: Path, name: str) -> None:
    """Raise where a tensor lies outside of the folder: any file could be read in its place."""
    if '/' in name or '\\' in name or name in ('', '.', '..') or '\0' in name or (path.parent / name).is_symlink():
        raise UserError(
            f'{path} takes weights from {name!r}, which is no plain file beside it',
            'do not trust this file; `dense export` puts weights into the file or right beside it',
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
            raise ValueError('a number in the place of a message')
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
    """Read a number of 7 bits a byte, lowest first; return it and where the next thing starts."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError('endless number')
