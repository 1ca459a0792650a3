"""Models of the benchmark in processes of their own, which take turns.

In one process models share a heap: one that leaves large free blocks behind spares the next one page faults that it
would have if it ran alone. Apart, each has its own, as in the program of somebody who uses only that model. What is
rewritten or trained as the tools do it (``+fused``, ``+lean``, ``+tuned``) keeps freed memory as the tools do; all else
has the C library's settings.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dense.benchmark.case import Case, Clock, Measurement, Protocol, Turn, configured, open_model
from dense.benchmark.models import FUSED, LEAN, TUNED
from dense.cpu.allocator import keep_memory

_cases: list[Case] = []  # in the other process


@dataclass
class ApartCase:
    """A model in one memory format that is ready to be timed in another process."""

    process: Executor
    index: int
    protocol: Protocol
    result: Measurement

    def turn(self, warmup: int, iters: int, device: torch.device, clock: Clock) -> Turn:
        """Take some steps untimed, then time others; other models wait meanwhile."""
        return self.process.submit(_turn, self.index, self.protocol, warmup, iters, device, clock).result()


@contextmanager
def open_apart(name: str, protocol: Protocol, notes: list[str]) -> Iterator[list[ApartCase]]:
    """Build a model in a process of its own, which ends with the context.

    Args:
        name: As :mod:`dense.benchmark.models` reads it.
        protocol: How to measure, with nothing left to choose.
        notes: What was changed to make it run is added.

    Raises:
        UserError: The name is not understood, or not even one image fits into memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        results, said = process.submit(_open, name, protocol).result()
        notes += said
        yield [ApartCase(process, index, protocol, result) for index, result in enumerate(results)]


def _open(name: str, protocol: Protocol) -> tuple[list[Measurement], list[str]]:
    notes = []
    if name.endswith((FUSED, LEAN, TUNED)) and keep_memory():
        notes.append(f'{name}: freed memory is kept')
    device = torch.device(protocol.device or 'cpu')
    with configured(protocol, device):
        _cases.extend(open_model(name, protocol, device, notes))
    return [case.result for case in _cases], notes


def _turn(index: int, protocol: Protocol, warmup: int, iters: int, device: torch.device, clock: Clock) -> Turn:
    with configured(protocol, device):
        return _cases[index].turn(warmup, iters, device, clock)
