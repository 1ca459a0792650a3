"""Trains and tests the model of a config; the commands in ``tools/`` and the demo call it.

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

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner

from dense.compat.checkpoints import handed_over
from dense.console.output import notice, quiet_libraries
from dense.cpu.device import describe_device, prepare_determinism
from dense.data.check import check_paths, fit_classes, read_checked
from dense.data.run_inputs import RunInputs
from dense.distributed.agreement import check_agreement, code_facts, config_facts
from dense.distributed.join import join_processes
from dense.engine.config import find_config, load_config
from dense.engine.restart import newest_of_run, note_new_run, resume_if_restarted
from dense.engine.resume import find_start
from dense.engine.run_defaults import add_run_defaults, add_test_defaults
from dense.engine.runner import DenseRunner
from dense.engine.signals import stop_request
from dense.engine.values import check_values
from dense.errors import UserError, name_checkpoint

__all__ = ['find_config', 'load_config', 'test', 'train']

_run_number = itertools.count()


def train(cfg: Config) -> Runner:
    """Train as the config says, and return the runner with the trained model.

    Args:
        cfg: From :func:`load_config`.

    Raises:
        UserError: There is something that the user can fix, found before the first step where possible.
        RunStopped: A signal asked the run to stop, and it was saved.
    """
    cfg = copy.deepcopy(cfg)
    with quiet_libraries():
        join_processes(cfg)
        inputs = _checked_inputs(cfg, ('train', 'val'))
        resume_if_restarted(cfg)
        start, read = find_start(cfg)
        _check_agreement(cfg, {'steps done': str(start.iter), 'epochs done': str(start.epoch)})
        note_new_run(cfg)
        add_run_defaults(cfg, replace(inputs, start=start))
        runner = _build_runner(cfg)
        if cfg.get('resume'):
            notice(f'continuing {cfg.load_from} after {start.iter} steps')
        try:
            with handed_over(read), stop_request() as runner.stop_request:
                runner.train()
        except Exception as error:
            newest = newest_of_run(cfg.work_dir)
            name_checkpoint(error, None if newest is None else str(newest))
            raise
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
        UserError: There is something that the user can fix.
    """
    cfg = copy.deepcopy(cfg)
    if not Path(checkpoint).is_file():
        raise UserError(f'checkpoint not found: {checkpoint}', 'give the file that training saved (*.pth)')
    cfg.load_from, cfg.resume = str(checkpoint), False
    with quiet_libraries():
        join_processes(cfg)
        inputs = _checked_inputs(cfg, ('test',))
        _check_agreement(cfg, {})
        add_test_defaults(cfg, inputs, show_dir=None if show_dir is None else str(show_dir), tta=tta)
        metrics = {name: float(value) for name, value in _build_runner(cfg).test().items()}
    if out is not None and is_main_process():
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(metrics, indent=2) + '\n')
    return metrics


def _check_agreement(cfg: Config, start: dict[str, str]) -> None:
    if get_world_size() > 1:
        check_agreement({'code': code_facts(cfg), 'config': config_facts(cfg), 'start': start})


def _checked_inputs(cfg: Config, splits: tuple[str, ...]) -> RunInputs:
    check_values(cfg)
    inputs = RunInputs.read(cfg, splits)
    check_paths(inputs)
    check_work_dir(cfg.work_dir)
    read_checked(inputs)
    changes = fit_classes(inputs)
    if changes:
        notice(changes)
    return inputs


def check_work_dir(work_dir: str) -> None:
    """Make the work dir and check that files can be written there.

    Raises:
        UserError: They cannot.
    """
    remedy = 'choose another folder with --work-dir, or change its permissions'
    probe = Path(work_dir) / f'.writable-{os.getpid()}'
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f'cannot write into the work dir {work_dir}: {error.strerror}', remedy) from error


@functools.cache
def say_device() -> None:
    """Say where the run computes, if not on a GPU of the usual kind; once per process."""
    text = describe_device()
    if text is not None:
        notice(text)


def _build_runner(cfg: Config) -> Runner:
    # MMEngine keeps log, message hub and visualizer under this name: two runs in one process must not share it.
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}-{next(_run_number)}'
    if cfg.get('visualizer'):
        cfg.visualizer.pop('name', None)
    say_device()
    if cfg.randomness.get('deterministic'):
        prepare_determinism()
    return DenseRunner.from_cfg(cfg)
