"""Reads checkpoints strictly: tensors and plain data only, no code of any kind.

mmengine can run code from a checkpoint file in three ways, all of which are blocked here:

* pickle: torch before 2.6 unpickles anything, and the onedl fork falls back to that on any file that the safe reader
  refuses. Every scheme of ``CheckpointLoader`` is registered again with :func:`backbones.serialization.load_file`.
* ``Runner.resume`` executes ``checkpoint['meta']['config']`` as Python. The loader removes that entry; mmengine itself
  writes the key ``cfg``, which is never executed, so its own files lose nothing.
* an Inferencer without a config executes the config text found in the weights. Now it asks for the config.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get_file_backend
from mmengine.infer import BaseInferencer
from mmengine.runner import checkpoint as mm_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from backbones.download import locate
from backbones.serialization import CheckpointError, load_file
from dense.errors import UserError

from .rebind import rebind
from .weights_file import check_weights_file

MARK = '_dense_repaired'
_handed_over: ContextVar[dict[str, Any] | None] = ContextVar('handed_over', default=None)
CEPH_PREFIXES = [r'(\S+\:)?s3://', r'(\S+\:)?petrel://']


def repair() -> None:
    """Make all of mmengine's ways to read a checkpoint strict. Idempotent."""
    for prefixes, loader in (
        ([''], load_from_local),
        (['http://', 'https://'], load_from_http),
        (['hf-hub:', 'hf_hub:'], load_from_local),
        (CEPH_PREFIXES, load_from_ceph),
        (['open-mmlab://', 'openmmlab://'], load_from_openmmlab),
        (['pavi://'], load_from_pavi),
    ):
        CheckpointLoader.register_scheme(prefixes, loader=loader, force=True)
    # `torchvision://` and `mmcls://` resolve a name and call this function.
    rebind(mm_checkpoint, 'load_from_http', load_from_http)
    if hasattr(mm_checkpoint, '_safe_torch_load'):
        rebind(mm_checkpoint, '_safe_torch_load', _strict_torch_load)
    _drop_config_text()
    _ask_for_config()


@contextmanager
def handed_over(contents: dict[str, Any]) -> Iterator[None]:
    """Let mmengine take checkpoints that were read already, each once, in the host's memory.

    Args:
        contents: Path -> content; emptied.
    """
    token = _handed_over.set(contents)
    try:
        yield
    finally:
        contents.clear()
        _handed_over.reset(token)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint file.

    Args:
        filename: Path (``~`` is the home folder) or ``file://`` URL of a ``.pth`` or ``.safetensors`` file, or
            ``hf-hub:OWNER/NAME``.
        map_location: As in ``torch.load``; None reads to the CPU.

    Raises:
        UserError: The file is missing, damaged, or would run code.
    """
    known = _handed_over.get()
    return known.pop(filename) if known and filename in known else _load(filename, map_location)


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True) -> Any:
    """Download a checkpoint once, then read it as a local file.

    In distributed training any number of processes may call this: if several ask for the same address at the same
    time, they wait until one of them has downloaded it.

    Args:
        filename: ``http://`` or ``https://`` address.
        map_location: As in :func:`load_from_local`.
        model_dir: Where downloads are kept; by default the folder of ``torch.hub``.
        progress: Show a progress bar.

    Raises:
        UserError: The download failed, or the file is refused.
    """
    return _load(filename, map_location, model_dir, progress)


def load_from_ceph(filename: str, map_location: Any = None, backend: str = 'petrel') -> Any:
    """Fetch a checkpoint from an object store through mmengine's file backend, then read it as a local file.

    Args:
        filename: ``s3://`` or ``petrel://`` address, optionally prefixed with a cluster.
        map_location: As in :func:`load_from_local`.
        backend: Name of the file backend.
    """
    content = get_file_backend(filename, backend_args={'backend': backend}).get(filename)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(filename).name
        path.write_bytes(content)
        return load_from_local(str(path), map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Resolve ``open-mmlab://NAME`` with mmengine's table and read that checkpoint.

    Args:
        filename: ``open-mmlab://`` or ``openmmlab://`` and a name of mmengine's model table.
        map_location: As in :func:`load_from_local`.

    Raises:
        UserError: The table has no such name.
    """
    name = filename.partition('://')[2]
    name = mm_checkpoint.get_deprecated_model_names().get(name, name)
    table = mm_checkpoint.get_external_models()
    if name not in table:
        raise UserError(
            f'{filename}: the OpenMMLab model table has no name {name!r}',
            f'use one of its {len(table)} models, such as {min(table)}, or a file or an address',
        )
    place = table[name]
    if place.startswith(('http://', 'https://')):
        return load_from_http(place, map_location)
    return load_from_local(os.path.join(mm_checkpoint._get_mmengine_home(), place), map_location)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Refuse ``pavi://``: its client reads files with an unrestricted pickle.

    Raises:
        UserError: Always.
    """
    raise UserError(f'{filename}: pavi:// is not supported', 'download the file and use its path')


def _load(source: str, map_location: Any, folder: str | None = None, progress: bool = True) -> Any:
    try:
        path = locate(source, folder=folder, progress=progress)
        return load_file(path, map_location='cpu' if map_location is None else map_location)
    except CheckpointError as error:
        cause, _, remedy = str(error).partition('\n')
        raise UserError(cause, remedy) from error


def _strict_torch_load(file: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
    if isinstance(file, str | os.PathLike):
        return load_from_local(os.fspath(file), map_location)
    return torch.load(file, map_location=map_location, weights_only=True)


def _drop_config_text() -> None:
    original = CheckpointLoader.load_checkpoint.__func__
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def load_checkpoint(cls: type, filename: str, map_location: Any = None, logger: Any = 'current') -> Any:
        checkpoint = original(cls, filename, map_location, logger)
        check_weights_file(checkpoint, filename)
        if 'meta' in checkpoint:
            checkpoint['meta'].pop('config', None)
        return checkpoint

    setattr(load_checkpoint, MARK, True)
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def _ask_for_config() -> None:
    original: Callable[..., Any] = BaseInferencer._init_model
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def _init_model(self: BaseInferencer, cfg: Any, weights: str | None, device: str = 'cpu') -> Any:
        if not cfg:
            raise UserError(
                f'no config was given for {weights}, and config text found in a checkpoint is never executed',
                'give the config file too: Inferencer(model=CONFIG, weights=CHECKPOINT)',
            )
        return original(self, cfg, weights, device)

    setattr(_init_model, MARK, True)
    BaseInferencer._init_model = _init_model
