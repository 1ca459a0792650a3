"""Values that every run's config must have in the right form, checked before anything is built.

Libraries take these values as they are, and fail later and elsewhere, or not at all.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, OPTIMIZERS, DefaultScope, Registry

from dense.console.explain_error import unknown_type
from dense.errors import UserError, did_you_mean


class Form(NamedTuple):
    """What a value may be.

    Attributes:
        text: The same in words.
        example: A usual value.
        fits: Tells whether a value has this form.
    """

    text: str
    example: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) < math.inf


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value))


def _whole(least: int, example: str) -> Form:
    return Form(f'a whole number of at least {least}', example, lambda value: _is_whole(value, least))


def _maybe(form: Form) -> Form:
    return Form(f'{form.text}, or None', form.example, lambda value: value is None or form.fits(value))


COUNT_OR_NEVER = Form(
    'a whole number of at least 1, or -1', '-1', lambda value: _is_whole(value, -1) and value != 0
)  # fmt: skip
POSITIVE = Form('a number above 0', '10', lambda value: _is_number(value) and value > 0)
AT_LEAST_0 = Form('a number of at least 0', '0.0001', lambda value: _is_number(value, 0))
DICT = Form('a dict', '"{\'max_norm\': 1.0}"', lambda value: isinstance(value, Mapping))
NAMES = Form('the name of a metric, or a list of them', 'auto', _is_names)

LOADER, WRAPPER = r'(train|val|test)_dataloader', r'optim_wrapper(\.\w+)?'
# Dotted keys, as regular expressions. Keys that a config lacks are not checked.
FORMS: dict[str, Form] = {
    rf'{LOADER}\.batch_size': _whole(1, '2'),
    rf'{LOADER}\.num_workers': _whole(0, '2'),
    rf'{LOADER}\.prefetch_factor': _maybe(_whole(1, '2')),
    rf'{LOADER}\.timeout': AT_LEAST_0,
    r'train_cfg\.(max_iters|max_epochs|val_interval)': _whole(1, '100'),
    r'train_cfg\.val_begin': _whole(0, '1'),
    rf'{WRAPPER}\.accumulative_counts': _whole(1, '2'),
    rf'{WRAPPER}\.clip_grad': _maybe(DICT),
    rf'{WRAPPER}\.optimizer': DICT._replace(example="\"{'type': 'AdamW', 'lr': 0.0001}\""),
    rf'{WRAPPER}\.optimizer\.(lr|weight_decay)': AT_LEAST_0,
    r'default_hooks\.checkpoint\.interval': COUNT_OR_NEVER,
    r'default_hooks\.checkpoint\.max_keep_ckpts': COUNT_OR_NEVER,
    r'default_hooks\.checkpoint\.save_best': _maybe(NAMES),
    r'default_hooks\.logger\.interval': _whole(1, '50'),
    r'model\.(.+\.)?num_classes': _maybe(_whole(1, '80')),
    r'randomness\.seed': _maybe(_whole(0, '0')),
    r'auto_scale_lr\.base_batch_size': _whole(1, '16'),
    r'max_unreadable': _maybe(_whole(0, '10')),
    r'save_every': _maybe(POSITIVE),
}
# Where libraries look a name up themselves, and go on with None if there is no such name.
LOOKED_UP: dict[str, Registry] = {
    rf'{WRAPPER}\.optimizer\.type': OPTIMIZERS,
    rf'{LOADER}\.(collate_fn|worker_init_fn)\.type': FUNCTIONS,
    r'model_wrapper_cfg\.type': MODEL_WRAPPERS,
}


def check_values(cfg: Config) -> None:
    """Check the form of a config's values, and the names that libraries do not check.

    Args:
        cfg: Config of a run.

    Raises:
        UserError: A value is something else; the message names the key, the value, and what is allowed.
    """
    scope = cfg.get('default_scope')
    for key, value in _values(cfg.to_dict()):
        form = _find(FORMS, key)
        if form is not None and not form.fits(value):
            raise UserError(
                f'{key} is {value!r}, allowed is {form.text}',
                f'set it in the config or with --cfg-options, for example {key}={form.example}',
            )
        registry = _find(LOOKED_UP, key)
        if registry is not None and isinstance(value, str) and not _is_registered(value, registry, scope):
            raise UserError(*unknown_type(registry.name, value))


def check_metric(wanted: Iterable[str], metrics: Mapping[str, Any]) -> None:
    """Check that the validation reported what the best checkpoint is chosen by.

    Args:
        wanted: Names in ``save_best``.
        metrics: What it reported.

    Raises:
        UserError: A name is not among them.
    """
    for name in wanted:
        if name not in metrics and name != 'auto':
            raise UserError(
                f'default_hooks.checkpoint.save_best is {name!r}, which the validation does not report',
                did_you_mean(name, metrics),
            )


def _values(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of everything below a node."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        place = f'{path}.{key}' if path else str(key)
        yield place, value
        yield from _values(value, place)


def _find(table: Mapping[str, Any], key: str) -> Any:
    return next((entry for pattern, entry in table.items() if re.fullmatch(pattern, key)), None)


def _is_registered(name: str, registry: Registry, scope: str | None) -> bool:
    with DefaultScope.overwrite_default_scope(scope), registry.switch_scope_and_registry(scope) as inner:
        return inner.get(name) is not None
