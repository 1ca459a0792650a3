"""Turns an exception, wherever it arose, into a cause and a remedy of one line each."""

import difflib
import errno
import inspect
import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from dense.console.connection import explain_connection, follows_from_another
from dense.errors import UserError, did_you_mean

# What PyTorch makes of an exception in a loading process: the text of its traceback inside another message.
WORKER_ERROR = re.compile(r'^(?:[\w.]+\.)?UserError: (?P<cause>.+)\n(?P<remedy>.+)', re.MULTILINE)
UNKNOWN_ARGUMENT = re.compile(r"(?P<owner>\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(?P<name>\w+)'")
MISSING_ARGUMENT = re.compile(r'(?P<owner>\w+)(?:\.__init__)?\(\) missing \d+ required .*argument')
UNREGISTERED = re.compile(r'(?P<name>[\w.]+) is not in the (?P<scope>[\w.-]+)::(?P<kind>[\w ]+) registry')
OWN_PACKAGES = ('backbones', 'dense')
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
CUDA_OOM = 'OutOfMemoryError'
NO_RULE = re.compile(r'Cannot infer the rule for key (?P<name>.+), thus')
ONE_VALUE = 'Expected more than 1 value per channel when training'


def explain(error: BaseException) -> tuple[str, str] | None:
    """Return the cause and the remedy of an error that the user can fix, or None.

    Args:
        error: The caught error; the errors that led to it are examined too.
    """
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, UserError) and 'Traceback' not in one.cause:
            return one.cause, one.remedy
    for reader in READERS:
        for one in chain:
            found = reader(one)
            if found is not None:
                return found
    return None


def is_consequence(error: BaseException) -> bool:
    """Tell whether an error only follows from the failure of another process.

    Args:
        error: The caught error.
    """
    chain = list(_chain(error))
    return not any(isinstance(one, UserError) for one in chain) and follows_from_another(chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _from_worker(error: BaseException) -> tuple[str, str] | None:
    matches = list(WORKER_ERROR.finditer(str(error))) if 'Traceback' in str(error) else []
    return (matches[-1]['cause'], matches[-1]['remedy']) if matches else None


def _from_own_package(error: BaseException) -> tuple[str, str] | None:
    # The backbones do not know UserError: their errors carry the two lines in the message.
    lines = [line.strip() for line in str(error).strip().split('\n')]
    is_ours = _origin(error.__traceback__).split('.')[0] in OWN_PACKAGES
    return (lines[0], lines[1]) if isinstance(error, ValueError) and is_ours and len(lines) == 2 else None


def _origin(trace: TracebackType | None) -> str:
    """Return the name of the module that raised."""
    name = ''
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get('__name__', ''))
        trace = trace.tb_next
    return name


def _unknown_argument(error: BaseException) -> tuple[str, str] | None:
    if not isinstance(error, TypeError):
        return None
    match = UNKNOWN_ARGUMENT.search(str(error))
    if match:
        allowed = _arguments(match['owner'])
        cause = f'unknown config key {match["name"]!r} of {match["owner"]}'
        return cause, did_you_mean(match['name'], allowed) if allowed else 'correct or remove the key in the config'
    match = MISSING_ARGUMENT.search(str(error))
    if match and inspect.isclass(_registered_class(match['owner'])):
        return f'the config of {match["owner"]} is incomplete: {error}', 'add the missing keys to the config'
    return None


def _arguments(owner: str) -> list[str]:
    found = _registered_class(owner)
    if found is None:
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(found).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named]


def _registered_class(name: str) -> Any:
    found = [kinds[name] for _, kinds in _registries() if name in kinds]
    return found[0] if found else None


def _registries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kind and the content of every registry, MMEngine's and those of the packages below it."""
    from mmengine import registry
    from mmengine.registry import Registry

    for root in [value for value in vars(registry).values() if isinstance(value, Registry)]:
        yield root.name, root.module_dict
        for child in root.children.values():
            yield root.name, child.module_dict


def _unregistered(error: BaseException) -> tuple[str, str] | None:
    match = UNREGISTERED.search(str(error)) if isinstance(error, KeyError) else None
    if match is None:
        return None
    return unknown_type(match['kind'], match['name'])


def unknown_type(kind: str, name: str) -> tuple[str, str]:
    """Return the cause and the remedy for a name that is in no registry of its kind.

    Args:
        kind: Name of the registries, such as ``'optimizer'``.
        name: The unknown name.
    """
    known = {one for registry, content in _registries() if registry == kind for one in content}
    near = difflib.get_close_matches(name, known, n=3)
    remedy = (
        f'did you mean {" or ".join(map(repr, near))}?'
        if near
        else 'correct the name, or import its module with custom_imports'
    )
    return f'unknown {kind} type {name!r} in the config', remedy


def _disk(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = f' {error.filename}' if error.filename else ''
        return (
            f'cannot write{place}: {error.strerror}',
            'free some space, change the permissions, or choose another --work-dir',
        )
    return None


def _memory(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, MemoryError):
        return (
            f'out of memory: {str(error) or "an allocation failed"}',
            'reduce train_dataloader.batch_size, train_dataloader.num_workers or the image size',
        )
    if type(error).__name__ != CUDA_OOM:
        return None
    first_line = str(error).split('\n')[0]
    return (
        f'out of GPU memory: {first_line}',
        'reduce train_dataloader.batch_size or the image size, or train with --amp',
    )


def _one_value(error: BaseException) -> tuple[str, str] | None:
    if not (isinstance(error, ValueError) and str(error).startswith(ONE_VALUE)):
        return None
    return (
        'a batch norm got one value per channel and cannot normalise it: a batch of one image was pooled to 1 x 1',
        'raise train_dataloader.batch_size, or use group norms: see "Small batches" in configs/README.md',
    )


def _no_rule(error: BaseException) -> tuple[str, str] | None:
    match = NO_RULE.match(str(error)) if isinstance(error, ValueError) else None
    if match is None:
        return None
    return (
        f'default_hooks.checkpoint.save_best is {match["name"]!r}, a metric of which nobody knows what is better',
        'correct the name, or add default_hooks.checkpoint.rule=greater or =less',
    )


READERS = (
    _from_worker,
    _from_own_package,
    explain_connection,
    _unknown_argument,
    _unregistered,
    _disk,
    _memory,
    _one_value,
    _no_rule,
)


def last_line(error: BaseException) -> str:
    """Return the last line of a traceback: the kind of error and its message, on one line."""
    return ' '.join(''.join(traceback.format_exception_only(error)).split())
