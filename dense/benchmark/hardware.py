"""Describes what a measurement ran on and what it used of the machine: names, memory, page faults."""

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import timm
import torch
import torchvision

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GEMM_SIZE = 2048
_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_CGROUP = Path('/sys/fs/cgroup')


def hardware(device: torch.device) -> str:
    """Name the processor or accelerator, its memory, and how OpenMP's idle threads wait."""
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        return f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB'
    memory = f'{_main_memory() / 2**30:.0f} GiB' if hasattr(os, 'sysconf') else 'unknown memory'
    isa = torch.backends.cpu.get_cpu_capability()
    waiting = os.environ.get('OMP_WAIT_POLICY', 'default')
    return f'{_cpu_name()} ({isa}), {os.cpu_count()} cores, {memory}, OMP_WAIT_POLICY {waiting}'


def _main_memory() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions that speed depends on."""
    found = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torchvision': torchvision.__version__,
        'timm': timm.__version__,
    }
    if device.type == 'cuda':
        found |= {'cuda': str(torch.version.cuda), 'cudnn': str(torch.backends.cudnn.version())}
    return found


def available_memory() -> int | None:
    """Return the bytes of main memory available without swapping, or None if the system does not report them."""
    free = [_meminfo('MemAvailable'), _container_memory()]
    return min((size for size in free if size is not None), default=None)


def _meminfo(name: str) -> int | None:
    path = Path('/proc/meminfo')
    for line in path.read_text().splitlines() if path.is_file() else []:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return None


def _container_memory() -> int | None:
    """Return what a container's limit (cgroup v2) leaves; the system itself reports the whole machine."""
    limit, used = _CGROUP / 'memory.max', _CGROUP / 'memory.current'
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == 'max':
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def page_faults() -> int:
    """Return how many minor page faults the process has had: memory pages newly handed out by the system.

    Windows does not report them; the result is 0 there.
    """
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass
class PeakGrowth:
    """How far memory grew, in bytes: resident memory, or allocated memory on a GPU."""

    size: int = 0


@contextmanager
def peak_growth(device: torch.device) -> Iterator[PeakGrowth]:
    """Measure by how much memory grows at most while the body runs; the result is filled in when it ends."""
    _release_free_memory(device)
    found, (before, _) = PeakGrowth(), memory_use(device)
    try:
        yield found
    finally:
        found.size = max(0, memory_use(device)[1] - before)


def _release_free_memory(device: torch.device) -> None:
    """Return unused memory to the system, and reset the peak to the memory in use, where the system can."""
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None) if os.name == 'posix' else None  # glibc's
    if trim is not None:
        trim(0)
    if os.access(_CLEAR, os.W_OK):
        _CLEAR.write_text('5')  # Linux: resets the peak of the resident memory to its current size


def memory_use(device: torch.device) -> tuple[int, int]:
    """Return the bytes in use, and their peak."""
    if device.type == 'cuda':
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0, 0
    if not _STATUS.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak  # in bytes on macOS, which has no /proc
    fields = dict(line.split(':', 1) for line in _STATUS.read_text().splitlines())
    return int(fields['VmRSS'].split()[0]) * 1024, int(fields['VmHWM'].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    """Wait until everything started on the device is done."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def gemm_rate(device: torch.device, clock: Callable[[], float] = time.perf_counter, repeats: int = 5) -> float:
    """Time the product of two square matrices of side 2048: about the best that a model can reach.

    Args:
        device: Where to multiply.
        clock: Returns seconds.
        repeats: Number of products; the median counts.

    Returns:
        FLOP/s, two for each multiply-accumulate.
    """
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device=device) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = clock()
        torch.mm(a, b)
        synchronize(device)
        seconds.append(clock() - start)
    return 2 * GEMM_SIZE**3 / median(seconds[1:])
