"""Finds the file that weights were loaded from."""

from pathlib import Path

from backbones.download import cached_path
from backbones.records import WEIGHTS


def file_of(source: str) -> Path | None:
    """Return the local file behind a source of weights, without fetching anything; None if there is none.

    Args:
        source: A path, an address, or a name of published weights.
    """
    record = WEIGHTS.get(source)
    addresses = [source] if record is None else [record.url, *record.mirrors]
    for address in addresses:
        path = cached_path(address) if '://' in address else Path(address).expanduser()
        if path.is_file():
            return path
    return None
