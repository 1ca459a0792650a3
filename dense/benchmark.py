"""How fast models train, infer, or answer one image: measured side by side, as the papers measure.

The protocol of InceptionNeXt (Table 4): 10 warm-up steps, 40 timed ones, batch 128 halved until it fits, channels
first and channels last, the better of the two counts. That of FasterNet (Table 3) for latency: batch 1, one thread,
10 + 200 steps on a CPU, 50 + 200 on a GPU. Beyond the papers: several models take turns (A B A B ...), so that a
machine that slows down slows all of them down; medians of single steps count; and a ratio compares two models turn by
turn.

A training step is forward, loss, backward and a step of SGD with momentum, or of AdamW; a backbone's loss is the mean
square of its last map. A whole model's inference runs all its parts with given regions (:mod:`dense.parts`), RoIAlign
included, NMS and the resizing of results not.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import torch

from dense.benchmark_models import LEAN, TUNED, Subject, build_subject, is_config, runtime_versions
from dense.errors import UserError
from dense.machine import available_memory, gemm_rate, hardware, page_faults, peak_growth, synchronize, versions
from dense.screen import notice

Mode = Literal['infer', 'train', 'latency']
Clock = Callable[[], float]
LAYOUTS = {'first': torch.contiguous_format, 'last': torch.channels_last}
MEMORY_SHARE = 0.7  # of the available memory that a batch may need; the system and its caches want the rest
TURN_WARMUP = 2  # steps before a later turn of a model, whose data the others have driven out of the caches


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        mode: ``'infer'`` and ``'train'`` for throughput, ``'latency'`` for the time of one image.
        warmup: Steps before the first timed one; None for what the papers took.
        iters: Timed steps of a turn; None for what the papers took.
        repeats: Turns of every model.
        batch: Images in a step; None for 128 of a backbone and 1 of a config's model (2 where it trains).
        shape: Channels, height and width of the images; None for what is usual for the model.
        layouts: Memory formats to try, of :data:`LAYOUTS`.
        threads: Of the CPU; None leaves PyTorch's choice, and takes one for latency.
        device: ``'cpu'``, ``'cuda'``, or None for the GPU if there is one.
        optimizer: ``'sgd'`` or ``'adamw'``, which a lean or tuned model gets in its fused form, as training does.
        tf32: Whether matrix products and convolutions on a GPU may round their inputs to TF32, as on the papers' A100.
    """

    mode: Mode = 'infer'
    warmup: int | None = None
    iters: int | None = None
    repeats: int = 3
    batch: int | None = None
    shape: tuple[int, int, int] | None = None
    layouts: tuple[str, ...] = ('first', 'last')
    threads: int | None = None
    device: str | None = None
    optimizer: Literal['sgd', 'adamw'] = 'sgd'
    tf32: bool = True


@dataclass
class Measurement:
    """What was measured of one model in one memory format.

    Attributes:
        name: Of the model.
        layout: ``'first'`` or ``'last'``: where the channels lie.
        batch: Images in a step.
        shape: Channels, height and width of an image.
        is_fused: Whether the model was rewritten for inference.
        flops: Of one image.
        turns: Seconds of each timed step, turn by turn.
        faults: Minor page faults of a step, turn by turn.
        peak_growth: Bytes by which memory grew at most during a turn, turn by turn.
    """

    name: str
    layout: str
    batch: int
    shape: tuple[int, int, int]
    is_fused: bool
    flops: float
    turns: list[list[float]] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peak_growth: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median of all steps."""
        return median(step for turn in self.turns for step in turn)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch / self.seconds

    @property
    def flop_rate(self) -> float:
        """FLOP/s reached."""
        return self.flops * self.rate

    def ratio(self, baseline: 'Measurement') -> float:
        """Return how many times faster this is than another one of the same run: the median over the turns."""
        pairs = zip(self.turns, baseline.turns, strict=True)
        return median(self.batch / median(own) * median(other) / baseline.batch for own, other in pairs)


@dataclass
class Result:
    """A whole run.

    Attributes:
        protocol: As asked for, with what was left to choose filled in.
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


@dataclass
class Case:
    """A model in one memory format, ready to be timed."""

    subject: Subject
    result: Measurement
    step: Callable[[], None]
    prepare: Callable[[], None]


def benchmark(
    names: Sequence[str],
    protocol: Protocol,
    *,
    baseline: str | None = None,
    build: Callable[..., Subject] = build_subject,
    clock: Clock = time.perf_counter,
    notes: Sequence[str] = (),
) -> Result:
    """Measure models side by side.

    Args:
        names: Models, as :mod:`dense.benchmark_models` reads them.
        protocol: How.
        baseline: One of the models; it is added if it is not among them.
        build: Makes a model from its name.
        clock: Returns seconds.
        notes: What else the result shall say of how it was measured.

    Raises:
        UserError: A name is not understood, or not even one image fits into memory.
    """
    protocol = _completed(protocol)
    device = torch.device(protocol.device or 'cpu')
    names = list(dict.fromkeys([*names, *([baseline] if baseline else [])]))
    said = list(notes)
    cases: list[Case] = []
    with _configured(protocol, device):
        for name in names:
            subject = build(name, train=protocol.mode == 'train', device=device, shape=protocol.shape)
            batch = _fitting_batch(subject, protocol, device, said)
            cases += [_case(subject, layout, batch, protocol) for layout in protocol.layouts]
        gemm = measure(cases, protocol, device, clock)
    found = [case.result for case in cases]
    packages = versions(device) | runtime_versions(names)
    return Result(protocol, hardware(device), packages, said, gemm, found, baseline)


def _completed(protocol: Protocol) -> Protocol:
    """Fill in what was left to choose."""
    device = protocol.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError(
            'there is no GPU that PyTorch can use', 'give --device cpu; tools/doctor.py tells what is installed'
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


@contextmanager
def _configured(protocol: Protocol, device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(protocol.threads or threads)
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = protocol.tf32
        torch.set_float32_matmul_precision('high' if protocol.tf32 else 'highest')
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(cases: Sequence[Case], protocol: Protocol, device: torch.device, clock: Clock) -> list[float]:
    """Time the cases in turns, and the product of two matrices once in every round.

    Returns:
        FLOP/s of the matrix products, one for each round.
    """
    gemm = []
    warmup, iters = protocol.warmup or 0, protocol.iters or 1
    for turn in range(protocol.repeats):
        for case in cases:
            case.prepare()
            with peak_growth(device) as growth:
                for _ in range(warmup if turn == 0 else min(TURN_WARMUP, warmup)):
                    case.step()
                faults = page_faults()
                case.result.turns.append([_timed(case.step, device, clock) for _ in range(iters)])
                case.result.faults.append((page_faults() - faults) / iters)
            case.result.peak_growth.append(growth.size)
        gemm.append(gemm_rate(device))
    return gemm


def _timed(step: Callable[[], None], device: torch.device, clock: Clock) -> float:
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def _case(subject: Subject, layout: str, batch: int, protocol: Protocol) -> Case:
    images = subject.images(batch).to(memory_format=LAYOUTS[layout])

    def prepare() -> None:
        if not subject.is_fused:  # a fused model's weights lie as its computation wants them
            subject.model.to(memory_format=LAYOUTS[layout])

    result = Measurement(subject.name, layout, batch, subject.shape, subject.is_fused, subject.flops)
    return Case(subject, result, make_step(subject, images, protocol.mode, protocol.optimizer), prepare)


def make_step(subject: Subject, images: torch.Tensor, mode: Mode, optimizer_name: str = 'sgd') -> Callable[[], None]:
    """Return the step that is timed."""
    if mode != 'train':

        @torch.inference_mode()
        def infer() -> None:
            subject.run(subject.model, images)

        return infer
    optimizer = _optimizer(subject, optimizer_name)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        subject.loss(subject.model, images).backward()
        optimizer.step()

    return train


def _optimizer(subject: Subject, name: str) -> torch.optim.Optimizer:
    if name == 'sgd':
        return torch.optim.SGD(subject.model.parameters(), lr=1e-3, momentum=0.9)
    return torch.optim.AdamW(subject.model.parameters(), lr=1e-4, fused=subject.name.endswith((LEAN, TUNED)) or None)


def _fitting_batch(subject: Subject, protocol: Protocol, device: torch.device, notes: list[str]) -> int:
    usual = (2 if protocol.mode == 'train' else 1) if is_config(subject.name) else 128
    asked = protocol.batch or usual

    def attempt(batch: int) -> None:
        make_step(subject, subject.images(batch), protocol.mode, protocol.optimizer)()

    limit = available_memory() if device.type == 'cpu' else None
    batch = fit_batch(attempt, asked, device=device, limit=limit, smallest=2 if protocol.mode == 'train' else 1)
    if batch < asked:
        notes.append(f'{subject.name}: batch {asked} does not fit into memory, reduced to {batch}')
        notice(notes[-1])
    return batch


def fit_batch(
    attempt: Callable[[int], None], batch: int, *, device: torch.device, limit: int | None = None, smallest: int = 1
) -> int:
    """Halve a batch until it fits into memory.

    Where memory ends on a CPU the system ends the process, so that the need is estimated there before anything large is
    tried: from the growth of two small batches.

    Args:
        attempt: Runs a step on that many images; raises when memory is short.
        batch: To begin with.
        device: Where it runs.
        limit: Bytes that there are; None tries instead of estimating.
        smallest: The smallest batch that can run.

    Returns:
        The largest of batch, batch / 2, batch / 4, ... that fits.

    Raises:
        UserError: Not even the smallest batch fits.
    """
    if limit is not None and batch >= 4 * smallest:
        need = _memory_estimate(attempt, device, smallest)
        while batch > smallest and need(batch) > MEMORY_SHARE * limit:
            batch = max(smallest, batch // 2)
    while True:
        try:
            attempt(batch)
            return batch
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if batch <= smallest:
                raise UserError(
                    f'not even a batch of {smallest} fits into memory',
                    'give smaller images with --shape, or another model',
                ) from None
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        batch = max(smallest, batch // 2)


def _memory_estimate(attempt: Callable[[int], None], device: torch.device, smallest: int) -> Callable[[int], float]:
    """Return a function of the batch: bytes that a step needs, on a straight line through two small batches."""
    attempt(smallest)  # what stays allocated once it was used shall not count
    growth = {}
    for batch in (smallest, 2 * smallest):
        with peak_growth(device) as used:
            attempt(batch)
        growth[batch] = used.size
    slope = max(0, growth[2 * smallest] - growth[smallest]) / smallest
    return lambda batch: growth[smallest] + slope * (batch - smallest)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has no class of its own for the CPU.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
