"""What a run computes on, and what that processor can do. Imports PyTorch only; MMEngine when it is asked for."""

import os

import torch

CUBLAS = 'CUBLAS_WORKSPACE_CONFIG'


def run_device() -> str:
    """Return the kind of device on which MMEngine puts the model: ``'cuda'``, ``'mps'``, ``'npu'`` ... or ``'cpu'``."""
    from mmengine.device import get_device

    return str(get_device())


def accelerator() -> str | None:
    """Return the kind of accelerator that PyTorch sees, whether MMEngine uses it or not; None if there is none."""
    found = getattr(torch, 'accelerator', None)  # older versions know only the two below
    if found is not None:
        return str(found.current_accelerator().type) if found.is_available() else None
    if torch.cuda.is_available():
        return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else None


def describe_device() -> str | None:
    """Return a notice about where a run computes; None for a GPU of NVIDIA or AMD, which is expected."""
    device, seen = run_device(), accelerator()
    if device == 'cuda':
        return None
    if device == 'mps':
        return 'running on the Apple GPU (mps)'
    if device != 'cpu':
        return f'running on the {device}'
    if seen is None:
        return 'no GPU found: running on the CPU'
    return f'running on the CPU: there is an accelerator ({seen}), but MMEngine cannot use it'


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 numbers, by the check that PyTorch itself makes first.

    If it does not, PyTorch adds up such products one by one.
    """
    # Absent where PyTorch was built without its library for CPUs.
    ask = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return bool(torch.backends.mkldnn.is_available() and ask is not None and ask())


def processor() -> str:
    """Return the instruction set that PyTorch computes with, such as ``AVX2``."""
    return str(torch.backends.cpu.get_cpu_capability())


def prepare_determinism() -> None:
    """Give cuBLAS a workspace that makes its results repeatable; it reads the variable when CUDA starts."""
    os.environ.setdefault(CUBLAS, ':4096:8')
