"""Reading checkpoint files without running anything that they contain."""

import re
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit; the message is two lines, the cause and how to mend it."""


def load_file(path: str | Path, map_location: str | torch.device = 'cpu') -> Any:
    """Read a ``.pth`` (``torch.save``) or ``.safetensors`` file.

    Tensors, plain Python containers and numbers, and what MMEngine's own checkpoints hold besides are read. Anything
    else in a pickle is refused, whoever made it: a pickle can run any code.

    Args:
        path: The file.
        map_location: Where the tensors go.

    Returns:
        What was saved; for ``.safetensors`` a dict from name to tensor.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, no checkpoint, or holds objects that are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'Checkpoint {str(path)!r} does not exist.\nCheck the path, or give a URL.')
    if path.suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    _check_archive(path)
    try:
        with _allowed_globals():
            return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _load_safetensors(path: Path, map_location: str | torch.device) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path, device=str(map_location))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _check_archive(path: Path) -> None:
    # torch.load ignores the checksums that torch.save wrote: a flipped byte would load silently.
    if not zipfile.is_zipfile(path):
        return  # the format before PyTorch 1.6, or no checkpoint at all: torch.load tells
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(_unreadable(path, error)) from error
    if damaged is not None:
        raise CheckpointError(
            f'Checkpoint {str(path)!r} is damaged: the checksum of its part {damaged!r} is wrong.\n'
            'Download or copy the file again, or take an earlier one.'
        )


def _allowed_globals() -> AbstractContextManager:
    # Beside the state dict, MMEngine stores its log history: HistoryBuffer objects that hold numpy arrays and
    # references to their own methods.
    reconstruct: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)]
    # Pickles written under numpy 1 name the module `numpy.core`, those under numpy 2 `numpy._core`.
    renamed = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    return torch.serialization.safe_globals(
        [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *renamed, (_history_method, 'builtins.getattr')]
    )


def _history_method(owner: Any, name: str) -> Any:
    # Stands in for `getattr`, which on arbitrary objects would be a way to arbitrary code.
    if isinstance(owner, HistoryBuffer) and name in {'mean', 'max', 'min', 'current', 'statistics'}:
        return getattr(owner, name)
    if owner is HistoryBuffer and name in {'mean', 'max', 'min', 'current'}:
        return getattr(owner, name)
    raise UnpicklingError(f'attribute {name!r} of {type(owner).__name__}')


def _refusal(path: Path, error: UnpicklingError) -> str:
    names = re.findall(r'GLOBAL (\S+)', str(error))
    if zipfile.is_zipfile(path):
        with _allowed_globals():
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not names:
        return _unreadable(path, UnpicklingError('a pickle that holds more than weights, or none'))
    return (
        f'Checkpoint {str(path)!r} wants to use {", ".join(names)}, which can run code; it was not read.\n'
        'Get the weights as .safetensors or as a plain state dict (torch.save(model.state_dict(), FILE)).'
    )


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).strip().split('\n')[0].split('. ')[0] or type(error).__name__
    size = path.stat().st_size
    return (
        f'{str(path)!r} ({size} bytes) is no readable checkpoint: {reason}.\n'
        'It may be truncated or another kind of file; download or copy it again.'
    )
