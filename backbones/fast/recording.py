"""Detection of graph recording."""

import torch


def is_recorded() -> bool:
    """Return whether a compiler or exporter records the computation; these decide themselves what to store."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
