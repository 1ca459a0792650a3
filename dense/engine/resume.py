"""Finds where a stopped run continues: its checkpoint, its step, its seed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from backbones.serialization import CheckpointError, load_file
from dense.console.output import notice
from dense.data.run_inputs import Start
from dense.errors import UserError

NUMBERED = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


def find_start(cfg: Config) -> Start:
    """Find the checkpoint that a run continues, and return where it starts.

    Args:
        cfg: Config of a run; ``load_from`` and the seed are filled in. Without ``resume`` only the seed is.

    Returns:
        Completed epochs and steps; 0 for a new run.

    Raises:
        UserError: There is no checkpoint, none can be read, or it does not hold the state of a run.
    """
    if not cfg.get('resume'):
        cfg.randomness.seed = cfg.randomness.seed or 0
        return Start()
    if cfg.get('load_from') is None:
        path, content = _newest_readable(cfg.work_dir)
    elif Path(cfg.load_from).is_file():
        path, content = Path(cfg.load_from), load_file(cfg.load_from)
    else:
        raise UserError(
            f'nothing to resume: there is no file {cfg.load_from}',
            'give the path of a checkpoint, or --resume alone for the newest one in the work dir',
        )
    cfg.load_from = str(path)
    meta = content.get('meta', {}) if isinstance(content, dict) else {}
    needed = ['optimizer'] + (['param_schedulers'] if cfg.get('param_scheduler') else [])
    lacking = ['step'] if 'iter' not in meta else [name for name in needed if name not in content]
    if lacking:
        raise UserError(
            f'{path} holds weights only and no whole state of a run: {", ".join(lacking)} missing',
            'start a new run from these weights with --load-from',
        )
    if cfg.randomness.seed is None:
        cfg.randomness.seed = meta.get('seed') or 0
    return Start(epoch=int(meta.get('epoch', 0)), iter=int(meta['iter']))


def _newest_readable(work_dir: str) -> tuple[Path, Any]:
    failures: list[CheckpointError] = []
    for path in checkpoints(work_dir):
        try:
            content = load_file(path)
        except CheckpointError as error:
            failures.append(error)
            notice(f'WARNING: {" ".join(str(error).split())} Looking for an earlier checkpoint.')
            continue
        if failures:
            notice(f'WARNING: continuing from the earlier {path}; what was trained after it is trained again')
        return path, content
    if failures:
        raise UserError(
            f'nothing to resume: none of the {len(failures)} checkpoints in {work_dir} can be read; '
            f'{str(failures[0]).splitlines()[0]}',
            'copy a checkpoint back from elsewhere, or start again without --resume',
        )
    raise UserError(
        f'nothing to resume: there is no checkpoint in {work_dir}',
        'start without --resume, or name the folder of the stopped run with --work-dir',
    )


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest checkpoint of a run, or None if it saved none.

    Args:
        work_dir: Folder of the run.
    """
    return next(checkpoints(work_dir), None)


def checkpoints(work_dir: str | Path) -> Iterator[Path]:
    """Yield the checkpoints of a run, the newest first.

    First comes the one that the run recorded as its last, or the file of that name in this folder if the folder was
    moved or copied; then the others in the folder, by time and number.

    Args:
        work_dir: Folder of the run.
    """
    folder = Path(work_dir)
    numbered = [
        (path.stat().st_mtime_ns, int(match[1]), path)
        for path in folder.glob('*.pth')
        if (match := NUMBERED.fullmatch(path.name)) and path.is_file()
    ]
    named = _named_as_last(folder)
    if named is not None:
        yield named
    yield from (path for *_, path in sorted(numbered, reverse=True) if path != named)


def _named_as_last(folder: Path) -> Path | None:
    try:
        text = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        # The file of that name here comes first: a copied folder still names the files of the original folder.
        for named in (folder / Path(text).name, Path(text)):
            if text and named.is_file():
                return named
    except (OSError, ValueError):  # no such file, or a damaged one: not text, or not a path
        pass
    return None
