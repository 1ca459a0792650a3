"""Whether what is computed is recorded as a graph."""

import torch


def is_recorded() -> bool:
    """Whether a compiler or exporter records what is computed: it decides itself what is kept."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
