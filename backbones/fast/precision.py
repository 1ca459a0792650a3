"""Detection of mixed precision."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the data type that ``torch.autocast`` uses for products of a tensor; None outside of autocast.

    Args:
        x: On any device, including those without mixed precision, such as ``meta``.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
