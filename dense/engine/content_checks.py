"""Checks that a checkpoint holds a state that a run can go on from, before anything works with it."""

from collections.abc import Mapping
from typing import Any

from dense.compat.weights_file import kind_of

MOST_ITEMS = 1_000_000  # outside the weights; a run's own checkpoints hold some thousands
MOST_LEVELS = 40


def check_run_state(content: Mapping[str, Any], schedulers: Any) -> str:
    """Return in words what of a checkpoint is no state that a run can go on from; empty if nothing.

    Args:
        content: What was read; it holds all that is needed.
        schedulers: ``param_scheduler`` of the config.
    """
    meta = content['meta']
    for key in ('iter', 'epoch', 'seed'):
        value = meta.get(key, 0)
        if (not isinstance(value, int) or isinstance(value, bool) or value < 0) and (key, value) != ('seed', None):
            return f'its meta.{key} is {value!r:.40}, not a whole number of at least 0'
    for entry in ('message_hub', 'optimizer'):
        if not isinstance(content[entry], Mapping) or not content[entry]:
            return f'its {entry} is {"empty" if not content[entry] else kind_of(content[entry])}'
    if _is_large({key: value for key, value in content.items() if key != 'state_dict'}):
        return f'it has more than {MOST_ITEMS} items, or {MOST_LEVELS} levels, besides the weights'
    found, wanted = _counts(content.get('param_schedulers')), _counts(schedulers)
    if found != wanted and set(found) != set(wanted[:1]):
        return f'it was saved with {sum(found)} schedulers (param_scheduler), the config has {sum(wanted)}'
    return ''


def _counts(schedulers: Any) -> list[int]:
    """Return the number of schedulers, of each optimizer if they are listed apart, in a config or a checkpoint."""
    if isinstance(schedulers, Mapping):
        groups = [one for one in schedulers.values() if isinstance(one, Mapping | list | tuple)]
        is_one = 'type' in schedulers or len(groups) < len(schedulers)
        return [1] if is_one else [_counts(group)[0] for group in groups] or [0]
    return [len(schedulers) if isinstance(schedulers, list | tuple) else 0]


def _is_large(content: Any) -> bool:
    """Tell whether containers hold too much, counting what occurs twice twice: so does who copies it."""
    waiting, items = [(content, 0)], 0
    while waiting:
        value, level = waiting.pop()
        items += 1
        if items > MOST_ITEMS or level > MOST_LEVELS:
            return True
        if isinstance(value, Mapping):
            waiting += [(item, level + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(item, level + 1) for item in value if isinstance(item, Mapping | list | tuple)]
    return False
