"""Keep freed memory instead of handing it back to the system after each layer.

The C library maps memory for every block above 32 MB and unmaps it when the block is freed, so the system must clear
the same pages again and again: a feature map of 512 x 2048 pixels costs tens of thousands of page faults per layer.
This affects only Linux with glibc; elsewhere nothing is done.
"""

import ctypes
import os

# Parameters of mallopt(3), as <malloc.h> numbers them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1

SWITCH = 'DENSE_KEEP_MEMORY'


def keep_memory() -> bool:
    """Serve large blocks from the heap, and never shrink it, until the process ends.

    The process then keeps as much memory as it ever needed. ``DENSE_KEEP_MEMORY=0`` in the environment turns it
    off.

    Returns:
        Whether it is in effect.
    """
    if os.environ.get(SWITCH) == '0':
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    if mallopt is None:
        return False
    # Both or neither: without the second, the heap would shrink and grow all the time instead of the mappings.
    return mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1 and mallopt(_M_MMAP_MAX, 0) == 1
