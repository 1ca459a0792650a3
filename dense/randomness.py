"""Random numbers that depend on how far a run has got, not on how it got there.

Every generator is seeded again for each training step and for each sample, from the run's seed and the step's or
sample's number. A stopped and resumed run therefore repeats the uninterrupted one exactly, without stored generator
states, whatever validation, worker processes and prefetching consumed in between.

All processes of a run seed a step alike. What is drawn for one sample of the step, and not for all, is drawn by the
sample's place in the global batch (:func:`randomness_at`), so that it does not depend on the number of processes.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

STEP, SAMPLE = 1, 2  # keep the two streams apart
REGIONS, BATCH = 1, 2  # what draws within a step: region samplers, mixing of images
ANY_RANK = 0  # stands where a rank stood once; runs of one process keep their numbers


class _Run:
    """How far the run of this process has got."""

    step: tuple[int, ...] = ()


def start_step(seed: int, number: int) -> None:
    """Seed the generators for a step, and for what :func:`randomness_at` draws until :func:`end_step`.

    Args:
        seed: Of the run.
        number: Of the step.
    """
    _Run.step = (seed, STEP, ANY_RANK, number)
    seed_generators(_Run.step)


def end_step() -> None:
    """Forget the step: what is drawn afterwards belongs to none."""
    _Run.step = ()


def current_step() -> tuple[int, ...]:
    """Return what identifies the step, empty between two steps."""
    return _Run.step


def randomness_at(*place: int) -> AbstractContextManager[None]:
    """Seed the host's generators for a place in the global batch of the step, and restore them afterwards.

    Outside a step nothing is changed.

    Args:
        *place: Not negative; what draws, and for which sample.
    """
    return own_randomness((*_Run.step, *place)) if _Run.step else nullcontext()


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
