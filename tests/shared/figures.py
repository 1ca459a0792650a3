"""Keeps figures that the tests of ``make test-breaking`` measure."""

import json
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[2] / 'work_dirs' / 'breaking.json'


def note(**figures: Any) -> None:
    """Write figures into the file, next to those that are there."""
    known = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    FIGURES.write_text(json.dumps({**known, **figures}, indent=2) + '\n')
