"""Keep freed memory instead of handing it back to the system after each layer.

The C library maps every block above 32 MB anew and unmaps it when it is freed, so that the system has to clear the
same pages again and again: a feature map of 512 x 2048 pixels costs tens of thousands of page faults for each layer.
Only Linux with glibc is concerned; elsewhere nothing is done.
"""

import ctypes
import os

# Parameters of mallopt(3), as <malloc.h> numbers them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1

SWITCH = 'DENSE_KEEP_MEMORY'


def keep_memory() -> bool:
    """Serve large blocks from the heap, and never shrink it; for the rest of the process.

    The process then keeps the most memory that it once needed. ``DENSE_KEEP_MEMORY=0`` in the environment turns it
    off.

    Returns:
        Whether it is in effect.
    """
    if os.environ.get(SWITCH) == '0':
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    if mallopt is None:
        return False
    # Both or neither: without the second the heap would shrink and grow again in place of the mappings.
    return mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1 and mallopt(_M_MMAP_MAX, 0) == 1
