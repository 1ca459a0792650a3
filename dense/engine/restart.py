"""Lets a run that was started again, by torchrun or by a job system, go on from its own newest checkpoint."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from dense.engine.resume import checkpoints

EARLIER = '.earlier_checkpoints.json'  # those that lay in the work dir when the run was new


def resume_if_restarted(cfg: Config) -> None:
    """Let a run continue from its newest checkpoint if torchrun has started it again.

    Args:
        cfg: Config of a run, changed in place.
    """
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0:
        resume_if_any(cfg)


def resume_if_any(cfg: Config) -> None:
    """Let a run continue from the newest checkpoint in its work dir; leave it as it is if there is none.

    Checkpoints of an earlier run, which were there before this one began anew, do not count.

    Args:
        cfg: Config of a run, changed in place.
    """
    if newest_of_run(cfg.work_dir) is not None:
        cfg.resume, cfg.load_from = True, None


def note_new_run(cfg: Config) -> None:
    """Note, at the start of a run, the checkpoints of earlier ones in its work dir.

    Args:
        cfg: Config of a run. One that is resumed continues those.
    """
    if not is_main_process():
        return
    note = Path(cfg.work_dir) / EARLIER
    earlier = {} if cfg.get('resume') else {path.name: path.stat().st_mtime_ns for path in checkpoints(cfg.work_dir)}
    if earlier:
        note.write_text(json.dumps(earlier))
    elif not cfg.get('resume'):
        note.unlink(missing_ok=True)


def newest_of_run(work_dir: str | Path) -> Path | None:
    """Return the newest checkpoint that a run itself saved, or None.

    Args:
        work_dir: Folder of the run.
    """
    return next(_own(Path(work_dir)), None)


def _own(work_dir: Path) -> Iterator[Path]:
    try:
        earlier = json.loads((work_dir / EARLIER).read_text())
    except (OSError, ValueError):
        earlier = {}
    for path in checkpoints(work_dir):
        if earlier.get(path.name) != path.stat().st_mtime_ns:
            yield path
