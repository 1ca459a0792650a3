"""Checkpoints that survive a crash while they are written, and that any strict reader opens."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.errors import UserError

ATOMIC = 'atomic'
PLAIN_HISTORY = 'plain_history'


@register_backend(ATOMIC, force=True)
class AtomicBackend(LocalBackend):
    """Local files that are either the old ones or complete new ones, and are removed only once a new one is there."""

    _to_remove: ClassVar[list[str]] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write a file beside its place, force it to the disk, move it into its place, then remove what waits.

        Args:
            obj: Content of the file.
            filepath: Its place; the folder is made if it is missing.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        try:
            with scratch.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        _sync_folder(path.parent)
        waiting, self._to_remove[:] = list(self._to_remove), []
        for old in waiting:
            if Path(old) != path:
                Path(old).unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file as soon as the next one is written.

        Args:
            filepath: The file.
        """
        self._to_remove.append(str(filepath))


def _sync_folder(folder: Path) -> None:
    # Without it a power cut may take the new name back. Windows cannot open folders and needs nothing of the kind.
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook, with the same arguments, that writes through :class:`AtomicBackend`.

    The log history is stored as plain tensors, so that the file opens with ``torch.load(weights_only=True)``.
    """

    def before_train(self, runner: Any) -> None:
        """Choose the folder and how files are written."""
        self.backend_args: dict[str, Any] | None
        if self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir):
            self.backend_args = dict(backend=ATOMIC)
        super().before_train(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Turn every object in the checkpoint into plain data."""
        for key in ('message_hub', 'meta'):
            checkpoint[key] = to_plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Rebuild the log history."""
        if 'message_hub' in checkpoint:
            checkpoint['message_hub'] = from_plain(checkpoint['message_hub'])


def to_plain(value: Any) -> Any:
    """Return a value in which log histories and NumPy data are tensors, numbers and lists."""
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return {PLAIN_HISTORY: torch.tensor(history, dtype=torch.float64), 'counts': torch.tensor(counts)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([to_plain(item) for item in value])
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def from_plain(value: Any) -> Any:
    """Undo :func:`to_plain` for log histories."""
    if isinstance(value, dict):
        if PLAIN_HISTORY in value:
            return HistoryBuffer(value[PLAIN_HISTORY].tolist(), value['counts'].tolist())
        return {key: from_plain(item) for key, item in value.items()}
    return value


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse a checkpoint that does not fit the model, before anything of it is loaded.

    Args:
        fine_tune: The weights are only a start: parameters that the checkpoint lacks, or has in another shape, keep
            their initial values and are counted in a notice. Otherwise every tensor must match.
    """

    priority = 'VERY_HIGH'

    def __init__(self, fine_tune: bool = False) -> None:
        self.fine_tune = fine_tune

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare names and shapes."""
        model = getattr(runner.model, 'module', runner.model)
        if hasattr(model, 'convert_checkpoint'):  # a classifier also takes its authors' files
            checkpoint['state_dict'] = model.convert_checkpoint(checkpoint)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = checkpoint.get('state_dict', checkpoint)
        got = {name.removeprefix('module.'): tuple(getattr(tensor, 'shape', ())) for name, tensor in state.items()}
        fitting = [name for name, shape in wanted.items() if got.get(name) == shape]
        others = sorted(set(wanted) ^ set(got)) + [name for name in wanted if name in got and got[name] != wanted[name]]
        if not fitting or (others and not self.fine_tune):
            raise UserError(
                f'the checkpoint does not fit the model: {len(fitting)} of {len(wanted)} tensors match; '
                f'others are {", ".join(others[:4])}{" ..." if len(others) > 4 else ""}',
                'use the config that the checkpoint was made with, or start from its weights with --load-from',
            )
        for name in [name for name in state if name.removeprefix('module.') in set(others) & set(wanted)]:
            del state[name]
        if others:
            new = sorted(set(wanted) - set(fitting))
            notice(f'loaded {len(fitting)} of {len(wanted)} tensors; new: {", ".join(new[:4])}')


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest checkpoint of a run, or None if it saved none.

    Args:
        work_dir: Folder of the run. The file that it names as its last is preferred, while it exists.
    """
    folder = Path(work_dir)
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        # The folder may have been moved since.
        for named in (Path(pointer.read_text().strip()), folder / Path(pointer.read_text().strip()).name):
            if named.is_file():
                return named
    numbered = [
        (path.stat().st_mtime_ns, path) for path in folder.glob('*.pth') if re.fullmatch(r'(iter|epoch)_\d+', path.stem)
    ]
    return max(numbered)[1] if numbered else None
