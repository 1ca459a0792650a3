"""Finds where a stopped run continues: its newest whole checkpoint, its step, its seed."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from backbones.serialization import CheckpointError, load_file
from backbones.unpickling import read_pickle
from dense.compat.weights_file import check_weights_file
from dense.console.output import notice
from dense.data.run_inputs import Start
from dense.engine.checkpoint import check_sound
from dense.engine.content_checks import check_run_state
from dense.errors import UserError

NUMBERED = re.compile(r'(?:iter|epoch)_(\d+)\.pth')


def find_start(cfg: Config) -> tuple[Start, dict[str, Any]]:
    """Find the checkpoint that a run continues, and return where it starts.

    Args:
        cfg: Config of a run; ``load_from`` and the seed are filled in. Without ``resume`` only the seed is.

    Returns:
        Completed epochs and steps; 0 for a new run. And the checkpoint's path with its content, so that nobody has to
        read it again; nothing for a new run.

    Raises:
        UserError: There is no checkpoint, or none is whole: it cannot be read, is damaged, has weights that are not
            finite, or does not hold the state of a run.
    """
    if not cfg.get('resume'):
        cfg.randomness.seed = cfg.randomness.seed or 0
        return Start(), {}
    schedulers = cfg.get('param_scheduler')
    if cfg.get('load_from') is None:
        path, content = _newest_whole(cfg.work_dir, schedulers)
    elif Path(cfg.load_from).is_file():
        path, content = Path(cfg.load_from), _read(Path(cfg.load_from), schedulers)
    else:
        raise UserError(
            f'nothing to resume: there is no file {cfg.load_from}',
            'give the path of a checkpoint, or --resume alone for the newest one in the work dir',
        )
    cfg.load_from = str(path)
    meta = content['meta']
    if cfg.randomness.seed is None:
        cfg.randomness.seed = meta.get('seed') or 0
    return Start(epoch=int(meta.get('epoch', 0)), iter=int(meta['iter'])), {str(path): content}


def _read(path: Path, schedulers: Any) -> dict[str, Any]:
    """Read a checkpoint and check that a run can go on from it; raise CheckpointError or UserError if not."""
    content = load_file(path)
    check_weights_file(content, str(path))
    meta = content.get('meta', {})
    needed = ['state_dict', 'message_hub', 'optimizer'] + (['param_schedulers'] if schedulers else [])
    lacking = ['step'] if 'iter' not in meta else [name for name in needed if name not in content]
    if lacking:
        raise UserError(
            f'{path} holds weights only and no whole state of a run: {", ".join(lacking)} missing',
            'start a new run from these weights with --load-from',
        )
    wrong = check_run_state(content, schedulers)
    if wrong:
        raise UserError(
            f'{path} is no state that this run can go on from: {wrong}',
            'use the config that it was saved with, resume from another checkpoint, or start a new run from its '
            'weights with --load-from',
        )
    try:
        check_sound(content['state_dict'])
    except UserError as error:
        raise UserError(f'{path}: {error.cause}', error.remedy) from error
    return content


def _newest_whole(work_dir: str, schedulers: Any) -> tuple[Path, dict[str, Any]]:
    failures: list[tuple[Path, str]] = []
    for path in checkpoints(work_dir):
        try:
            content = _read(path, schedulers)
        except (CheckpointError, UserError) as error:
            cause = str(error).splitlines()[0].rstrip('.')
            failures.append((path, cause))
            notice(f'WARNING: {cause}. Looking for an earlier checkpoint.')
            continue
        if failures:
            notice(
                f'WARNING: continuing from the earlier {path} instead of {failures[0][0]}; what was trained after it '
                'is trained again'
            )
        return path, content
    if failures:
        raise UserError(
            f'nothing to resume: none of the {len(failures)} checkpoints in {work_dir} is whole; {failures[0][1]}',
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

    The time at which a checkpoint was saved is written in it; one that cannot be read, or has none, has the time of its
    file. The file that the run recorded as its last only adds a folder to look into: it is written after the
    checkpoint, and a run may have been killed in between.

    Args:
        work_dir: Folder of the run.
    """
    folder = Path(work_dir)
    named = _named_as_last(folder)
    places = {folder} if named is None else {folder, named.parent}
    found = {path for place in places for path in place.glob('*.pth') if NUMBERED.fullmatch(path.name)}
    if named is not None:
        found.add(named)
    yield from sorted(filter(Path.is_file, found), key=_age, reverse=True)


def _age(path: Path) -> tuple[float, int]:
    """Return when a checkpoint was saved, in seconds, and its number."""
    match = NUMBERED.fullmatch(path.name)
    saved: Any = None
    with contextlib.suppress(Exception):  # arbitrary bytes can raise anything; the file's turn to be refused comes
        saved = read_pickle(path, 'cpu', mmap=True)['meta']['saved']  # maps the tensors and reads none
    return (saved if isinstance(saved, float) else path.stat().st_mtime, int(match[1]) if match else 0)


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
