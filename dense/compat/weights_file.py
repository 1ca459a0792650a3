"""Checks that a file's content has the form of weights or of a checkpoint."""

from collections.abc import Mapping
from typing import Any

from backbones.weights import ENTRIES
from dense.errors import UserError

SAVE_AGAIN = 'give a file that training saved, or save the weights with torch.save(model.state_dict(), FILE)'


def check_weights_file(content: Any, name: str) -> None:
    """Check that a file holds tensors by names, directly or in one of the usual entries.

    Args:
        content: What was read.
        name: Of the file.

    Raises:
        UserError: It does not.
    """
    if not isinstance(content, Mapping):
        raise UserError(f'{name} holds no weights: found {kind_of(content)} in place of names and tensors', SAVE_AGAIN)
    for entry in ('state_dict', 'meta'):
        if entry in content and not isinstance(content[entry], Mapping):
            raise UserError(f'{name} is no checkpoint: its {entry!r} is {kind_of(content[entry])}', SAVE_AGAIN)
    found = [content[entry] for entry in ENTRIES if isinstance(content.get(entry), Mapping)] or [content]
    unnamed = [key for state in found for key in state if not isinstance(key, str)]
    if unnamed:
        raise UserError(f'{name} holds no weights: the name {unnamed[0]!r:.40} is {kind_of(unnamed[0])}', SAVE_AGAIN)


def kind_of(value: Any) -> str:
    """Return the class of a value with its article: ``'a list'``.

    Args:
        value: Anything.
    """
    name = type(value).__name__
    return f'{"an" if name[0].lower() in "aeiou" else "a"} {name}'
