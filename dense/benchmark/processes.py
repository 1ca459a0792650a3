"""Runs each model of the benchmark in its own process; the processes take turns.

Models in one process share a heap: large free blocks left by one model spare the next one page faults that it would
have if it ran alone. In separate processes each model has its own heap, as in a program that uses only that model.
Models that are rewritten or trained as the tools do it (``+fused``, ``+lean``, ``+tuned``) keep freed memory, as the
tools do; all others use the C library's settings.
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
        """Run some untimed steps, then time others; other models wait meanwhile."""
        return self.process.submit(_turn, self.index, self.protocol, warmup, iters, device, clock).result()


@contextmanager
def open_apart(name: str, protocol: Protocol, notes: list[str]) -> Iterator[list[ApartCase]]:
    """Build a model in its own process, which ends with the context.

    Args:
        name: As :mod:`dense.benchmark.models` reads it.
        protocol: How to measure, with nothing left to choose.
        notes: List to which remarks on what had to be changed are added.

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
