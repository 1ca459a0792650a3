"""Measures side by side how fast models train, infer, or process one image, as the papers do.

The protocol of InceptionNeXt (Table 4): 10 warm-up steps, 40 timed ones, batch 128 halved until it fits, channels
first and channels last, the better of the two counts. That of FasterNet (Table 3) for latency: batch 1, one thread,
10 + 200 steps on a CPU, 50 + 200 on a GPU. Beyond the papers: several models take turns (A B A B ...), so a
machine that slows down slows all of them down; medians of single steps count; and a ratio compares two models turn by
turn.

A training step is forward, loss, backward and a step of SGD with momentum, or of AdamW; a backbone's loss is the mean
square of its last map. A whole model's inference runs all its parts with given regions
(:mod:`dense.analysis.forward_parts`), including RoIAlign, but not NMS or the resizing of results.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from dense.benchmark.case import Case, Clock, Measurement, Protocol, configured, open_model
from dense.benchmark.hardware import gemm_rate, hardware, versions
from dense.benchmark.models import Subject, build_subject, runtime_versions
from dense.benchmark.processes import ApartCase, open_apart
from dense.errors import UserError

TURN_WARMUP = 2  # steps before a model's later turns: the others have pushed its data out of the caches


@dataclass
class Result:
    """A whole run.

    Attributes:
        protocol: As requested, with the open choices filled in.
        hardware: What it ran on.
        versions: Package -> version.
        notes: What was changed to make it run.
        gemm: FLOP/s of a product of two 2048 x 2048 matrices, turn by turn.
        measurements: Of every model and memory format.
        baseline: Name of the model that the ratios refer to.
    """

    protocol: Protocol
    hardware: str
    versions: dict[str, str]
    notes: list[str]
    gemm: list[float]
    measurements: list[Measurement]
    baseline: str | None

    def best(self) -> list[Measurement]:
        """Return the better memory format of every model."""
        names = dict.fromkeys(m.name for m in self.measurements)
        return [max((m for m in self.measurements if m.name == name), key=lambda m: m.rate) for name in names]

    def baseline_measurement(self) -> Measurement | None:
        """Return the better memory format of the baseline."""
        return next((m for m in self.best() if m.name == self.baseline), None)


def benchmark(
    names: Sequence[str],
    protocol: Protocol,
    *,
    baseline: str | None = None,
    build: Callable[..., Subject] = build_subject,
    clock: Clock = time.perf_counter,
    notes: Sequence[str] = (),
    apart: bool = False,
) -> Result:
    """Measure models side by side.

    Args:
        names: Models, as :mod:`dense.benchmark.models` reads them.
        protocol: How to measure.
        baseline: One of the models; it is added if it is not among them.
        build: Builds a model from its name.
        clock: Returns seconds.
        notes: Further remarks for the result on how it was measured.
        apart: Run each model in its own process (:mod:`dense.benchmark.processes`).

    Raises:
        UserError: A name is not understood, or not even one image fits into memory.
    """
    protocol = _completed(protocol)
    device = torch.device(protocol.device or 'cpu')
    names = list(dict.fromkeys([*names, *([baseline] if baseline else [])]))
    said = list(notes)
    cases: list[Case | ApartCase] = []
    with configured(protocol, device), ExitStack() as opened:
        for name in names:
            if apart:
                cases += opened.enter_context(open_apart(name, protocol, said))
            else:
                cases += open_model(name, protocol, device, said, build)
        gemm = measure(cases, protocol, device, clock)
    found = [case.result for case in cases]
    packages = versions(device) | runtime_versions(names)
    return Result(protocol, hardware(device), packages, said, gemm, found, baseline)


def _completed(protocol: Protocol) -> Protocol:
    """Fill in the open choices."""
    device = protocol.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError(
            'there is no GPU that PyTorch can use', 'use --device cpu; `dense doctor` shows what is installed'
        )
    is_latency = protocol.mode == 'latency'
    return replace(
        protocol,
        device=device,
        threads=protocol.threads or (1 if is_latency else torch.get_num_threads()),
        batch=1 if is_latency else protocol.batch,
        warmup=(50 if is_latency and device == 'cuda' else 10) if protocol.warmup is None else protocol.warmup,
        iters=protocol.iters or (200 if is_latency else 40),
    )


def measure(cases: Sequence[Case | ApartCase], protocol: Protocol, device: torch.device, clock: Clock) -> list[float]:
    """Time the cases in turns, and the product of two matrices once in every round.

    Returns:
        FLOP/s of the matrix products, one for each round.
    """
    gemm = []
    warmup, iters = protocol.warmup or 0, protocol.iters or 1
    for turn in range(protocol.repeats):
        for case in cases:
            first = warmup if turn == 0 else min(TURN_WARMUP, warmup)
            case.result.add(case.turn(first, iters, device, clock))
        gemm.append(gemm_rate(device))
    return gemm
