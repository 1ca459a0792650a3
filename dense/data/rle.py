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


def decode_lengths(counts: Any) -> NDArray[np.int64]:
    """Return the run lengths that ``counts`` holds, compressed or not.

    pycocotools trusts what it decodes and writes past its memory where the lengths are wrong; this does not.

    Args:
        counts: COCO's text, or a list of lengths.

    Raises:
        ValueError: It is neither, or a length is negative.
    """
    if isinstance(counts, list) and all(type(length) is int and 0 <= length < 2**31 for length in counts):
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str | bytes):
        raise ValueError(f'run lengths are a text or a list of numbers from 0 to {2**31 - 1}')
    lengths = _undo_differences(_numbers(counts if isinstance(counts, bytes) else counts.encode('utf-8', 'replace')))
    if (lengths < 0).any() or (lengths >= 2**31).any():
        raise ValueError('a run length is negative or beyond any image')
    return lengths


def _numbers(text: bytes) -> NDArray[np.int64]:
    """Read numbers in two's complement, lowest digits first."""
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST
    is_last = (digits & (1 << _BITS)) == 0
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() >= 2 << _BITS or not is_last[-1]:
        raise ValueError("run lengths with characters outside COCO's alphabet, or cut off")
    last = np.flatnonzero(is_last)
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(digits.size) - np.repeat(first, last - first + 1)
    if place.max() > 6:
        raise ValueError('a run length of more than 35 bits')
    low = digits & ((1 << _BITS) - 1)
    values = np.add.reduceat(low << (_BITS * place), first)
    is_negative = (low[last] & (1 << (_BITS - 1))) != 0
    return values - np.where(is_negative, np.int64(1) << (_BITS * (place[last] + 1)), 0)


def _undo_differences(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up what was stored as the difference from the last but one: everything from the fourth number on."""
    lengths = values.copy()
    for start in (1, 2):
        lengths[start::2] = np.cumsum(values[start::2])
    return lengths
