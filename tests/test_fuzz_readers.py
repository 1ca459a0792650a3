"""Does nothing but our own errors come out of the readers, whatever they are given?

Small budgets here; ``make fuzz`` searches for minutes, guided by the code that is reached.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, annotation

from dense.engine.options import parse_options
from dense.errors import UserError

BUDGET = int(os.environ.get('FUZZ_EXAMPLES', '60'))
COMMON = dict(
    max_examples=BUDGET, deadline=None, derandomize='FUZZ_EXAMPLES' not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A whole content with some bytes changed, cut out or put in."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(['replace', 'cut', 'insert', 'end']))
        some = draw(st.binary(min_size=1, max_size=6))
        if change == 'replace':
            content[place : place + len(some)] = some
        elif change == 'insert':
            content[place:place] = some
        elif change == 'cut':
            del content[place : place + draw(st.integers(1, 40))]
        else:
            del content[place:]
    return bytes(content)


@pytest.mark.parametrize('name', READERS)
def test_damaged_bytes(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    seeds = reader.seeds()
    assert all(reader.accepts(seed, tmp_path) for seed in seeds)

    @settings(**COMMON)  # type: ignore[arg-type]
    @given(st.one_of(damaged(seeds), st.binary(max_size=64)))
    def check(content: bytes) -> None:
        reader.accepts(content, tmp_path)

    check()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just(10**400), st.just([]),
    st.just({}), st.lists(st.one_of(st.integers(-5, 50), st.floats(), st.text(max_size=2)), max_size=9),
    st.sampled_from([0, -1, 1, 2, 16, '1', 1.0, 2**63, -(2**63), 1e300, float('nan'), float('inf'), [[]], [[1, 2]]]),
)  # fmt: skip


@st.composite
def odd_annotations(draw: st.DrawFn) -> dict[str, Any]:
    """A file in which some values are something else, are missing, or are listed twice."""
    content = copy.deepcopy(annotation())
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(list(content)))
        rows = content[kind]
        if not isinstance(rows, list) or not rows or draw(st.integers(0, 30)) == 0:
            content[kind] = draw(ODD)
            continue
        row = draw(st.sampled_from(rows))
        if not isinstance(row, dict) or not row or draw(st.integers(0, 15)) == 0:
            rows.append(draw(st.one_of(ODD, st.just(copy.deepcopy(row)))))
            continue
        key = draw(st.sampled_from(list(row)))
        inner = row[key]
        if isinstance(inner, list) and inner and draw(st.booleans()):
            inner[draw(st.integers(0, len(inner) - 1))] = draw(ODD)
        elif isinstance(inner, dict) and inner and draw(st.booleans()):
            inner[draw(st.sampled_from(list(inner)))] = draw(ODD)
        elif draw(st.integers(0, 5)) == 0:
            del row[key]
        else:
            row[key] = draw(ODD)
    return content


def test_odd_annotations(tmp_path: Path) -> None:
    """What is accepted can also be loaded, with finite boxes and a mask for each."""
    reader, accepted = READERS['annotations'], []

    @settings(**{**COMMON, 'max_examples': 2 * BUDGET})  # type: ignore[arg-type]
    @given(odd_annotations())
    def check(content: dict[str, Any]) -> None:
        accepted.append(reader.accepts(json.dumps(content).encode(), tmp_path))

    check()
    assert 0.02 < sum(accepted) / len(accepted) < 0.9, 'the search should see both sides'


@settings(**COMMON)  # type: ignore[arg-type]
@given(st.lists(st.text(max_size=30), max_size=3))
def test_odd_options(pairs: list[str]) -> None:
    try:
        options = parse_options(pairs)
    except UserError as error:
        assert len(str(error).splitlines()) == 2
        return
    assert all(isinstance(key, str) and key for key in options)
