"""Random numbers that depend on how far a run has got, not on how it got there.

Every generator is seeded again for each training step and for each sample, from the run's seed and the step's or
sample's number. A stopped and resumed run therefore repeats the uninterrupted one exactly, without stored generator
states, whatever validation, worker processes and prefetching consumed in between.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

STEP, SAMPLE = 1, 2  # keep the two streams apart


def seed_generators(entropy: Sequence[int]) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (all devices) from some non-negative numbers."""
    words = _words(entropy)
    torch.manual_seed(_seed_host(words))


@contextmanager
def own_randomness(entropy: Sequence[int]) -> Iterator[None]:
    """Run the body with the host's generators seeded from some non-negative numbers, and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.default_generator.manual_seed(_seed_host(_words(entropy)))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _words(entropy: Sequence[int]) -> np.ndarray:
    return np.random.SeedSequence(list(entropy)).generate_state(4)


def _seed_host(words: np.ndarray) -> int:
    random.seed(int(words[0]))
    np.random.seed(words[1:2])
    return int(words[2]) << 31 ^ int(words[3])
