"""Writes checkpoints, in the background if asked, and remembers which could not be written."""

import contextlib
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import get_file_backend

from backbones import checksums
from dense.engine.atomic import AtomicBackend
from dense.engine.content import to_host


class CheckpointWriter:
    """Writes one checkpoint at a time; the next one, and whoever asks for the outcome, waits for it.

    Attributes:
        in_background: Copy the content and write it in a thread, while training goes on.
        pointer: File that gets the path of each checkpoint as soon as it is whole; None for none.
    """

    def __init__(self) -> None:
        self.in_background = False
        self.pointer: Path | None = None
        self._thread: threading.Thread | None = None
        self._done: list[tuple[str, Exception | None]] = []

    def write(self, content: dict[str, Any], path: str, backend_args: dict[str, Any] | None) -> None:
        """Write a checkpoint, after the one before it.

        Args:
            content: What is saved; it may change as soon as this method returns.
            path: Where.
            backend_args: Arguments of MMEngine's file backend.
        """
        self.wait()
        kept = to_host(content, copy=self.in_background)
        job = (kept, path, get_file_backend(path, backend_args=backend_args), self.pointer)
        if self.in_background:
            # A second signal ends the process at once: it must not wait for this thread.
            self._thread = threading.Thread(target=self._try, args=job, name='write checkpoint', daemon=True)
            self._thread.start()
        else:
            self._try(*job)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def outcomes(self) -> list[tuple[str, OSError | None]]:
        """Wait for the checkpoint that is being written; return those written since the last call, and what failed.

        Raises:
            Exception: The failure was not the disk's.
        """
        self.wait()
        done, self._done = self._done, []
        for _, error in done:
            if error is not None and not isinstance(error, OSError):
                raise error
        return done  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _try(self, content: dict[str, Any], path: str, backend: Any, pointer: Path | None) -> None:
        try:
            _write(content, path, backend)
            if pointer is not None:
                with contextlib.suppress(OSError):  # what resumes a run finds its files without it
                    AtomicBackend().put(path.encode(), pointer)
            self._done.append((path, None))
        except Exception as error:  # handed to the thread that asks for the outcome
            self._done.append((path, error))


def _write(content: dict[str, Any], path: str, backend: Any) -> None:
    if not isinstance(backend, AtomicBackend):
        backend.put(_bytes(lambda file: torch.save(content, file)), path)
        return
    checksums.forget(path)  # a file killed between the two steps has no hash rather than another's
    found = backend.write(path, lambda file: torch.save(content, file))
    with contextlib.suppress(OSError):  # the file is whole without it
        checksums.record(path, found)


def _bytes(fill: Callable[[Any], None]) -> bytes:
    with io.BytesIO() as file:
        fill(file)
        return file.getvalue()
