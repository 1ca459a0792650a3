"""Which code a run was made with: the commit of the clone, and what was changed since."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

MAX_DIFF = 1 << 20  # bytes that are kept of a diff
PATIENCE = 20.0  # seconds for a slow drive


@dataclass(frozen=True)
class CodeState:
    """The state of a clone.

    Attributes:
        commit: Hash of the commit.
        diff: What differs from it in the files that git knows, at most :data:`MAX_DIFF` bytes.
        diff_bytes: Size of the whole diff.
        diff_sha256: Hash of the whole diff.
        untracked: Python files that git neither knows nor ignores.
    """

    commit: str
    diff: bytes
    diff_bytes: int
    diff_sha256: str
    untracked: tuple[str, ...]


def read_code_state(folder: str | Path) -> CodeState | None:
    """Ask git about a clone; nothing is changed.

    Args:
        folder: Root of the clone.

    Returns:
        None if it is no clone, or if git is missing or does not answer.
    """
    if not (Path(folder) / '.git').exists():  # a folder; a file in a work tree
        return None
    commit = _git(folder, 'rev-parse', 'HEAD')
    diff = _git(folder, 'diff', 'HEAD', '--no-color', '--no-ext-diff', '--no-textconv')
    untracked = _git(folder, 'ls-files', '--others', '--exclude-standard', '-z', '--', '*.py')
    if commit is None or diff is None or untracked is None:
        return None
    return CodeState(
        commit=commit.decode().strip(),
        diff=diff[:MAX_DIFF],
        diff_bytes=len(diff),
        diff_sha256=hashlib.sha256(diff).hexdigest(),
        untracked=tuple(name for name in untracked.decode('utf-8', 'replace').split('\0') if name),
    )


def _git(folder: str | Path, *arguments: str) -> bytes | None:
    command = ['git', '-C', str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=PATIENCE,
            # A look must not wait for, or disturb, what the user does in the clone.
            env={**os.environ, 'GIT_OPTIONAL_LOCKS': '0'},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
