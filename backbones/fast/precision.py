"""Whether a computation is in mixed precision."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that ``torch.autocast`` gives the products of a tensor, or None outside of it.

    Args:
        x: On any device, also on one that has no mixed precision, as ``meta``.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
