"""One model of the benchmark in one memory format: how to measure it, a turn of timed steps, and the results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import torch

from dense.benchmark.hardware import available_memory, page_faults, peak_growth, synchronize
from dense.benchmark.models import LEAN, TUNED, Subject, build_subject, is_config
from dense.console.output import notice
from dense.errors import UserError

Mode = Literal['infer', 'train', 'latency']
Clock = Callable[[], float]
LAYOUTS = {'first': torch.contiguous_format, 'last': torch.channels_last}
MEMORY_SHARE = 0.7  # of the available memory that a batch may use; the rest is for the system and its caches


@dataclass(frozen=True)
class Protocol:
    """How to measure.

    Attributes:
        mode: ``'infer'`` and ``'train'`` for throughput, ``'latency'`` for the time of one image.
        warmup: Steps before the first timed one; None for the papers' number.
        iters: Timed steps of a turn; None for the papers' number.
        repeats: Turns for each model.
        batch: Images in a step; None for 128 with a backbone and 1 with a config's model (2 in training).
        shape: Channels, height and width of the images; None for the model's usual size.
        layouts: Memory formats to try, of :data:`LAYOUTS`.
        threads: CPU threads; None leaves the choice to PyTorch, but uses one for latency.
        device: ``'cpu'``, ``'cuda'``, or None for the GPU if there is one.
        optimizer: ``'sgd'`` or ``'adamw'``, in its fused form for a lean or tuned model, as in training.
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
    """The measurements of one model in one memory format.

    Attributes:
        name: Name of the model.
        layout: ``'first'`` or ``'last'``: where the channels are.
        batch: Images in a step.
        shape: Channels, height and width of an image.
        is_fused: Whether the model was rewritten for inference.
        flops: FLOPs of one image.
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

    def add(self, turn: 'Turn') -> None:
        """Add the measurements of one more turn."""
        self.turns.append(turn.seconds)
        self.faults.append(turn.faults)
        self.peak_growth.append(turn.peak_growth)

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
        """Return how many times faster this is than another measurement of the same run: the median over the turns."""
        pairs = zip(self.turns, baseline.turns, strict=True)
        return median(self.batch / median(own) * median(other) / baseline.batch for own, other in pairs)


@dataclass
class Turn:
    """The measurements of one turn of a model.

    Attributes:
        seconds: Duration of each timed step.
        faults: Minor page faults of a step.
        peak_growth: Bytes by which memory grew at most.
    """

    seconds: list[float]
    faults: float
    peak_growth: int


@dataclass
class Case:
    """A model in one memory format, ready to be timed."""

    subject: Subject
    result: Measurement
    step: Callable[[], None]
    prepare: Callable[[], None]

    def turn(self, warmup: int, iters: int, device: torch.device, clock: Clock) -> Turn:
        """Run some untimed steps, then time others."""
        self.prepare()
        with peak_growth(device) as growth:
            for _ in range(warmup):
                self.step()
            faults = page_faults()
            seconds = [_timed(self.step, device, clock) for _ in range(iters)]
            faults = page_faults() - faults
        return Turn(seconds, faults / iters, growth.size)


@contextmanager
def configured(protocol: Protocol, device: torch.device) -> Iterator[None]:
    """Set threads and precision as the protocol says while the body runs."""
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


def open_model(
    name: str,
    protocol: Protocol,
    device: torch.device,
    notes: list[str],
    build: Callable[..., Subject] = build_subject,
) -> list[Case]:
    """Build a model and prepare it in every requested memory format.

    Args:
        name: As :mod:`dense.benchmark.models` reads it.
        protocol: How to measure.
        device: Where to run it.
        notes: List to which remarks on what had to be changed are added.
        build: Builds a model from its name.

    Raises:
        UserError: The name is not understood, or not even one image fits into memory.
    """
    subject = build(name, train=protocol.mode == 'train', device=device, shape=protocol.shape)
    batch = _fitting_batch(subject, protocol, device, notes)
    return [_case(subject, layout, batch, protocol) for layout in protocol.layouts]


def _timed(step: Callable[[], None], device: torch.device, clock: Clock) -> float:
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def _case(subject: Subject, layout: str, batch: int, protocol: Protocol) -> Case:
    images = subject.images(batch).to(memory_format=LAYOUTS[layout])

    def prepare() -> None:
        if not subject.is_fused:  # a fused model's weights already have the layout it needs
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

    When memory runs out on a CPU, the system kills the process. There the need is estimated from the growth of two
    small batches before anything large is tried.

    Args:
        attempt: Runs a step on that many images; raises when memory is short.
        batch: Batch to start with.
        device: Where it runs.
        limit: Available bytes; None tries instead of estimating.
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
                    'use smaller images (--shape) or another model',
                ) from None
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        batch = max(smallest, batch // 2)


def _memory_estimate(attempt: Callable[[int], None], device: torch.device, smallest: int) -> Callable[[int], float]:
    """Return a function from batch to the bytes that a step needs: a straight line through two small batches."""
    attempt(smallest)  # memory that stays allocated after the first use does not count
    growth = {}
    for batch in (smallest, 2 * smallest):
        with peak_growth(device) as used:
            attempt(batch)
        growth[batch] = used.size
    slope = max(0, growth[2 * smallest] - growth[smallest]) / smallest
    return lambda batch: growth[smallest] + slope * (batch - smallest)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has no such class for the CPU.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
