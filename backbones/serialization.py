"""Reading checkpoint files without running any code in them."""

import os
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch

from backbones.checksums import damage, sidecar
from backbones.unpickling import read_pickle

_ZIP_MAGIC = b'PK\x03\x04'
_ZIP_END_MAGIC, _ZIP_END_SIZE = b'PK\x05\x06', 22  # without a comment


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the message has two lines, the cause and how to fix it."""


def load_file(path: str | Path, map_location: str | torch.device = 'cpu') -> Any:
    """Read a ``.pth`` (``torch.save``) or ``.safetensors`` file. Several threads may read at the same time.

    It reads tensors, plain Python containers, numbers, and the other objects in MMEngine's own checkpoints. It refuses
    anything else in a pickle, whoever made it: a pickle can run any code. A file with its hash next to it (see
    :mod:`backbones.checksums`) is compared with it first.

    Args:
        path: The file.
        map_location: Where the tensors go.

    Returns:
        What was saved; for ``.safetensors`` a dict from name to tensor.

    Raises:
        CheckpointError: The file is missing, truncated, damaged or not a checkpoint, or holds objects that are refused.
    """
    path = Path(path)
    _check_device(map_location)
    _check_place(path)
    try:
        _check_hash(path)
        if _is_safetensors(path):
            return safetensors.torch.load_file(path, device=str(map_location))
        if _starts_with(path, _ZIP_MAGIC):
            _check_archive(path)
        return read_pickle(path, map_location)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from error
    except Exception as error:  # reading arbitrary bytes can raise anything: AttributeError, struct.error, ...
        raise CheckpointError(_unreadable(path, error)) from error


def _check_device(map_location: Any) -> None:
    is_cuda = isinstance(map_location, str | torch.device) and torch.device(map_location).type == 'cuda'
    if is_cuda and not torch.cuda.is_available():
        raise CheckpointError(
            f'map_location={str(map_location)!r}, but PyTorch finds no CUDA device here.\n'
            "Read to 'cpu' and move the tensors afterwards."
        )


def one_line(text: object, most: int = 200) -> str:
    """Make a text from a file or a library fit into one line: short, without line breaks or control characters.

    Args:
        text: Anything with a ``str``.
        most: Maximum number of characters.
    """
    line = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(text)[: most + 1])
    return line if len(line) <= most else f'{line[:most]}...'


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's class if it has no message."""
    return one_line(str(error).strip().split('\n')[0].rstrip('.') or type(error).__name__)


def _check_place(path: Path) -> None:
    # os.path returns False where a Path raises: no permission for a folder, or a name that is too long.
    if os.path.isdir(path):
        raise CheckpointError(f'{str(path)!r} is a folder, not a checkpoint.\nName a file in it.')
    if not os.path.exists(path):
        raise CheckpointError(f'Checkpoint {str(path)!r} does not exist.\nCheck the path, or give a URL.')
    if not os.path.isfile(path):
        raise CheckpointError(f'{str(path)!r} is a device or a pipe, not a checkpoint.\nSave its content to a file.')


def _check_hash(path: Path) -> None:
    wrong = damage(path)
    if wrong:
        raise CheckpointError(
            f'Checkpoint {str(path)!r} is damaged: {wrong}.\n'
            f'Copy the file again, or use an earlier one; if you changed it on purpose, remove {sidecar(path).name}.'
        )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open('rb') as file:
        return file.read(len(magic)) == magic


def _is_safetensors(path: Path) -> bool:
    """Tell by the name, or by a JSON object after eight bytes with its length (downloads may have any name)."""
    if path.suffix.lower() == '.safetensors':
        return True
    with path.open('rb') as file:
        start = file.read(9)
    return start[8:] == b'{' and 8 + int.from_bytes(start[:8], 'little') <= path.stat().st_size


def _check_archive(path: Path) -> None:
    """Check the sizes and checksums that torch's own reader does not check. Reads each byte at most once.

    Raises:
        CheckpointError: The archive is damaged, or torch.save did not write it.
    """
    with zipfile.ZipFile(path) as archive:
        foreign = _what_torch_never_writes(path, archive.infolist())
        if foreign:
            raise CheckpointError(
                f'Checkpoint {str(path)!r} {foreign}, which torch.save never writes; it was not read.\n'
                'Get the file from its author again, or save it again with torch.save.'
            )
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f'Checkpoint {str(path)!r} is damaged: the checksum of its part {one_line(damaged)!r} is wrong.\n'
            'Download or copy the file again, or use an earlier one.'
        )


def _what_torch_never_writes(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    # A few compressed megabytes can swell to gigabytes, and so can parts that share their bytes.
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
    if packed:
        return f'has compressed parts ({one_line(packed[0])!r})'
    size, declared = path.stat().st_size, sum(entry.file_size for entry in entries)
    if declared > size:
        return f'has parts of {declared} bytes in a file of {size}'
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        return 'has two parts with the same name'
    # Zip readers treat the next two cases differently, so torch's might see parts that were not checked.
    if min((entry.header_offset for entry in entries), default=0) > 0 or not _ends_with_directory(path):
        return 'has bytes around its parts'
    return ''


def _ends_with_directory(path: Path) -> bool:
    with path.open('rb') as file:
        file.seek(-_ZIP_END_SIZE, os.SEEK_END)
        return file.read(4) == _ZIP_END_MAGIC


def _refusal(path: Path, error: UnpicklingError) -> str:
    names = re.findall(r'GLOBAL (\S+)', str(error))
    if not names:
        return _unreadable(path, UnpicklingError('a pickle that holds more than weights, or no weights'))
    return (
        f'Checkpoint {str(path)!r} uses {one_line(names[0])}, which can run code; it was not read.\n'
        'Get the weights as .safetensors or as a plain state dict (torch.save(model.state_dict(), FILE)).'
    )


def _unreadable(path: Path, error: Exception) -> str:
    reason = first_line(error).split('. ')[0]
    return (
        f'{str(path)!r} ({path.stat().st_size} bytes) is not a readable checkpoint: {reason}.\n'
        'It may be truncated or another kind of file; download or copy it again.'
    )
