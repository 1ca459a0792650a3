"""Explains errors of the connection between processes. Most of them only follow from what happened to another one."""

import os
import re
from collections.abc import Iterable

TYPES = {'DistBackendError', 'DistNetworkError', 'DistStoreError', 'DistError'}
# Gloo raises plain RuntimeErrors, not always with the file that they come from.
GLOO = re.compile(
    r'gloo[/\\]|pair closure|Connection closed by peer|Connection reset by peer|Socket (unexpectedly )?closed|'
    r'Gloo connectFullMesh failed|Timed out waiting \d+ ?ms for (send|recv) operation'
)
BUSY_PORT = re.compile(r'EADDRINUSE|address already in use', re.IGNORECASE)
TOO_LATE = re.compile(r'timed? ?out|timeout', re.IGNORECASE)


def explain_connection(error: BaseException) -> tuple[str, str] | None:
    """Return the cause and the remedy of an error of the connection between processes, or None for any other.

    Args:
        error: Whatever PyTorch raised.
    """
    if not _is_of_connection(error):
        return None
    if BUSY_PORT.search(str(error)):
        port = os.environ.get('MASTER_PORT', 'the port')
        return (
            f'another program uses port {port}, through which the processes find each other',
            'set MASTER_PORT to a free one (torchrun --master-port), or start with --gpus, which finds one itself',
        )
    if TOO_LATE.search(str(error)):
        return (
            'another process did not answer within env_cfg.dist_cfg.timeout: it hangs, stands still or is much slower',
            'look at what the other processes do (py-spy dump --pid PID), or raise the time-out if they only take long',
        )
    return (
        'the connection to another process was lost: it failed, was killed, or its machine is gone',
        'look at the output of the other processes and, for one that was killed, at its memory (dmesg)',
    )


def follows_from_another(chain: Iterable[BaseException]) -> bool:
    """Tell whether an error arose because another process failed or stands still.

    Args:
        chain: The error and those that led to it.
    """
    return any(_is_of_connection(error) and not BUSY_PORT.search(str(error)) for error in chain)


def _is_of_connection(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and (type(error).__name__ in TYPES or bool(GLOO.search(str(error))))
