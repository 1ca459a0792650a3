"""Counted sizes of the leaf configs, shared by the suites of one run."""

from functools import cache

from leaves import BY_NAME

from dense.analysis.complexity import Complexity, config_complexity


@cache
def complexity_of(name: str) -> Complexity:
    """What a leaf's model costs at its usual shape."""
    return config_complexity(BY_NAME[name])
