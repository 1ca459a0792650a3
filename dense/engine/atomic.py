"""Writes files completely or not at all, even if the process is killed."""

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mmengine.fileio import LocalBackend, register_backend

from backbones.checksums import sidecar

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete a file that is open in a process
    fcntl = None  # type: ignore[assignment]

ATOMIC = 'atomic'


@register_backend(ATOMIC, force=True)
class AtomicBackend(LocalBackend):
    """Local files that are either old or complete new ones, and are removed only once a new one exists.

    Args:
        waiting: Paths to remove after the next write. MMEngine makes a backend for every write, so the owner of a run's
            files passes the same list to all of them; it contains only that run's files.
        cancels: If a write fails, what waits for it is not removed by a later one either.
    """

    def __init__(self, waiting: list[str] | None = None, cancels: bool = False) -> None:
        self.waiting = [] if waiting is None else waiting
        self.cancels = cancels

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write a file next to its destination, flush it to disk, move it into place, then remove the waiting files.

        Args:
            obj: Content of the file.
            filepath: Its destination; the folder is created if missing.
        """
        self.write(filepath, lambda file: file.write(obj))

    def write(self, filepath: str | Path, fill: Callable[['HashingFile'], Any]) -> str:
        """Do the same with a file that a function fills piece by piece.

        Args:
            filepath: Destination of the file; the folder is created if missing.
            fill: Writes the content.

        Returns:
            The content's SHA-256 hash.
        """
        path = Path(filepath)
        try:
            content = _replace(path, fill)
        except BaseException:
            if self.cancels:
                self.waiting.clear()
            raise
        waiting, self.waiting[:] = list(self.waiting), []
        for old in waiting:
            if Path(old) != path:
                Path(old).unlink(missing_ok=True)
                sidecar(old).unlink(missing_ok=True)
        return content.hash.hexdigest()

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, and its checksum, as soon as the next one is written.

        Args:
            filepath: The file.
        """
        self.waiting.append(str(filepath))


class HashingFile:
    """A file to write into from front to back, which computes the hash of its content.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write some bytes and return their number."""
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self.file.flush()


def _replace(path: Path, fill: Callable[[HashingFile], Any]) -> HashingFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_file(path.with_name(f'{path.name}.{_host()}-{os.getpid()}.tmp')) as file:
        content = HashingFile(file)
        try:
            fill(content)
        except Exception as error:
            if content.failure is not None:  # torch.save raises another error, about positions in the file
                raise content.failure from error
            raise
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows cannot move an open file
        os.replace(file.name, path)
    _sync_folder(path.parent)
    return content


@contextmanager
def _scratch_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, locked as long as this process lives; it is deleted afterwards unless it was moved."""
    while True:
        with path.open('wb') as file:
            _lock(file, wait=True)
            # Before it was locked, a sweep may have mistaken it for the file of a dead process.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                try:
                    yield file
                finally:
                    if fcntl is None:
                        file.close()
                    path.unlink(missing_ok=True)
                return


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Lock an open file until it is closed or its process dies; return whether it is locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


def sweep(folder: str | Path) -> list[Path]:
    """Remove the half-written files that killed processes of this machine left in a folder.

    The file of a living process is locked and stays, whatever its number; so do the files of other machines, whose
    locks are not visible on every network drive.

    Args:
        folder: Where an :class:`AtomicBackend` writes.

    Returns:
        What was removed.
    """
    removed = []
    for path in Path(folder).glob(f'*.{_host()}-*.tmp'):
        if re.fullmatch(rf'.+\.{re.escape(_host())}-\d+\.tmp', path.name) is None or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):  # swept by another process; no permission
            if _remove_unlocked(path):
                removed.append(path)
    return removed


def _remove_unlocked(path: Path) -> bool:
    if fcntl is None:
        path.unlink()  # refused while a process has it open
        return True
    with path.open('r+b') as file:
        if is_free := _lock(file, wait=False):
            path.unlink()
    return is_free


def _host() -> str:
    return re.sub(r'[^A-Za-z0-9_-]', '_', socket.gethostname()) or 'local'


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may undo the renaming. Windows cannot open folders and does not need it.
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
