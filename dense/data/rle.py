"""Masks as COCO stores them: run lengths, column by column, starting with a run of zeros."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5  # of a number in each character; the sixth bit means that more follow
_FIRST = 48  # the character of a zero


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask, (H, W), in COCO's compressed form: ``size`` (H, W) and ``counts``, a text."""
    return {'size': [int(side) for side in mask.shape], 'counts': _text(run_lengths(mask))}


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of the runs of a mask, (H, W), COCO's uncompressed ``counts``."""
    flat = mask.reshape(-1, order='F')
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def _text(lengths: list[int]) -> str:
    """Write each length (from the third on, its difference from the last but one) in two's complement, lowest first."""
    characters = []
    for at, length in enumerate(lengths):
        value, is_last = length - lengths[at - 2] if at > 2 else length, False
        while not is_last:
            low = value & ((1 << _BITS) - 1)
            value >>= _BITS
            # The highest bit written is the sign of the number.
            is_last = value == (-1 if low & (1 << (_BITS - 1)) else 0)
            characters.append(chr(_FIRST + (low if is_last else low | 1 << _BITS)))
    return ''.join(characters)
