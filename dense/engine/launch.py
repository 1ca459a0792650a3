"""From a config to a trained and tested model: what the commands in ``tools/`` and the demo call.

>>> cfg = load_config('configs/mask_rcnn/mask-rcnn_inceptionnext-a_fpn_1x_coco.py', data_root='data/coco')
>>> runner = train(cfg)
>>> metrics = test(cfg, 'work_dirs/.../epoch_12.pth')
"""

import copy
import functools
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from backbones.serialization import load_file
from dense.console.output import notice, quiet_libraries
from dense.data.check import check_paths, fit_classes
from dense.data.run_inputs import RunInputs, Start
from dense.engine.checkpoint import latest_checkpoint
from dense.engine.config import find_config, load_config
from dense.engine.run_defaults import add_run_defaults, add_test_defaults
from dense.engine.runner import DenseRunner, join_processes
from dense.errors import UserError

__all__ = ['find_config', 'load_config', 'test', 'train']

_run_number = itertools.count()


def train(cfg: Config) -> Runner:
    """Train as the config says, and return the runner with the trained model.

    Args:
        cfg: From :func:`load_config`.

    Raises:
        UserError: Something that the user can mend, found before the first step where possible.
    """
    cfg = copy.deepcopy(cfg)
    with quiet_libraries():
        join_processes(cfg.launcher)
        inputs = _checked_inputs(cfg, ('train', 'val'))
        start = _find_start(cfg)
        add_run_defaults(cfg, replace(inputs, start=start))
        runner = _build_runner(cfg)
        if cfg.get('resume'):
            notice(f'continuing {cfg.load_from} after {start.iter} steps')
        runner.train()
    return runner


def test(
    cfg: Config,
    checkpoint: str | Path,
    *,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    tta: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    Args:
        cfg: From :func:`load_config`.
        checkpoint: File with the weights; every tensor must fit.
        out: JSON file for the metrics.
        show_dir: Folder for pictures of input, truth and prediction side by side.
        tta: Average the predictions over the config's test-time augmentations.

    Returns:
        Metric name -> value, as the evaluators report them.

    Raises:
        UserError: Something that the user can mend.
    """
    cfg = copy.deepcopy(cfg)
    if not Path(checkpoint).is_file():
        raise UserError(f'checkpoint not found: {checkpoint}', 'give the file that training saved (*.pth)')
    cfg.load_from, cfg.resume = str(checkpoint), False
    with quiet_libraries():
        join_processes(cfg.launcher)
        inputs = _checked_inputs(cfg, ('test',))
        add_test_defaults(cfg, inputs, show_dir=None if show_dir is None else str(show_dir), tta=tta)
        metrics = {name: float(value) for name, value in _build_runner(cfg).test().items()}
    if out is not None and is_main_process():
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(metrics, indent=2) + '\n')
    return metrics


def _checked_inputs(cfg: Config, splits: tuple[str, ...]) -> RunInputs:
    inputs = RunInputs.read(cfg, splits)
    check_paths(inputs)
    check_work_dir(cfg.work_dir)
    names = fit_classes(inputs)
    if names:
        notice(f'classes of the data: {len(names)} ({", ".join(names[:5])}{", ..." if len(names) > 5 else ""})')
    return inputs


def check_work_dir(work_dir: str) -> None:
    """Make the work dir and check that files can be written there.

    Raises:
        UserError: They cannot.
    """
    remedy = 'choose another folder with --work-dir, or change its rights'
    probe = Path(work_dir) / f'.writable-{os.getpid()}'
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f'cannot write into the work dir {work_dir}: {error.strerror}', remedy) from error


def _find_start(cfg: Config) -> Start:
    """Find the checkpoint to continue from and the seed, set both in the config, and return where the run starts."""
    if not cfg.get('resume'):
        cfg.randomness.seed = cfg.randomness.seed or 0
        return Start()
    if cfg.get('load_from') is None:
        latest = latest_checkpoint(cfg.work_dir)
        if latest is None:
            raise UserError(
                f'nothing to resume: there is no checkpoint in {cfg.work_dir}',
                'start without --resume, or name the folder of the stopped run with --work-dir',
            )
        cfg.load_from = str(latest)
    elif not Path(cfg.load_from).is_file():
        raise UserError(
            f'nothing to resume: there is no file {cfg.load_from}',
            'give the path of a checkpoint, or --resume alone for the newest one in the work dir',
        )
    meta = load_file(cfg.load_from).get('meta', {})
    if 'iter' not in meta:
        raise UserError(
            f'{cfg.load_from} holds weights only and no state of a run',
            'start a new run from these weights with --load-from',
        )
    if cfg.randomness.seed is None:
        cfg.randomness.seed = meta.get('seed') or 0
    return Start(epoch=int(meta.get('epoch', 0)), iter=int(meta['iter']))


@functools.cache
def say_device() -> None:
    """Say where the run computes, if not on a GPU; once in a process."""
    if not torch.cuda.is_available():
        notice('no GPU found: running on the CPU')


def _build_runner(cfg: Config) -> Runner:
    # MMEngine keeps log, message hub and visualizer under this name: two runs of a process must not share it.
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}-{next(_run_number)}'
    if cfg.get('visualizer'):
        cfg.visualizer.pop('name', None)
    say_device()
    return DenseRunner.from_cfg(cfg)
