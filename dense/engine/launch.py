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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from dense.console.output import notice, quiet_libraries
from dense.cpu.device import describe_device, prepare_determinism
from dense.data.check import check_paths, fit_classes
from dense.data.relocate import find_data, replace_data_root
from dense.engine.options import apply_options, check_options, check_top_level
from dense.engine.precision import ask_for_mixed_precision
from dense.engine.resume import resume_point
from dense.engine.run_defaults import add_run_defaults, add_test_defaults
from dense.engine.runner import DenseRunner, join_processes
from dense.errors import UserError, did_you_mean

PROJECT = Path(__file__).resolve().parents[2]
_run_number = itertools.count()


def load_config(
    path: str | Path,
    *,
    work_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    resume: str | None = None,
    load_from: str | Path | None = None,
    amp: bool = False,
    compiled: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    seed: int | None = None,
    deterministic: bool = False,
) -> Config:
    """Read a config file and lay the user's choices over it.

    Args:
        path: Config file, relative to the current folder or else to the project.
        work_dir: Where logs and checkpoints go; ``work_dirs/<config name>`` of the project by default.
        data_root: Root of the data, in place of the one that the config names.
        options: Config keys in dotted form and their new values.
        resume: ``'auto'`` continues the newest checkpoint of ``work_dir``; otherwise a checkpoint file to continue.
        load_from: Checkpoint file whose weights training starts from.
        amp: Train in mixed precision; refused on a CPU without bfloat16, unless the config names ``dtype``.
        compiled: Compile the backbone; a config's own ``compile`` (arguments of ``torch.compile``) is kept.
        auto_scale_lr: Scale the learning rate with the images per step, from the number that the config was made for.
        launcher: ``'none'``, or what started the processes of a distributed run: ``'pytorch'``, ``'slurm'``, ``'mpi'``.
        seed: Seed of every random number; by default that of the resumed run, of the config, or else 0.
        deterministic: Use deterministic algorithms even where they are slower.

    Raises:
        UserError: The file, a key or a checkpoint does not exist, or the config does not tell its images per step.
    """
    with quiet_libraries():
        cfg = _read(find_config(path))
    check_top_level(cfg)
    if options:
        check_options(cfg, options)
        apply_options(cfg, options)
    if data_root is not None:
        replace_data_root(cfg, str(data_root))
    find_data(cfg, PROJECT)
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or PROJECT / 'work_dirs' / Path(cfg.filename).stem)
    cfg.launcher = launcher
    if amp:
        ask_for_mixed_precision(cfg)
    if compiled:
        cfg.compile = cfg.get('compile') or True
    if auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise UserError(
                f'{path} does not say for how many images per step its learning rate is meant',
                'add --cfg-options "auto_scale_lr={\'base_batch_size\': NUMBER}", or start without --auto-scale-lr',
            )
        cfg.auto_scale_lr.enable = True
    if load_from is not None:
        cfg.load_from = str(load_from)
    if resume is not None:
        cfg.resume, cfg.load_from = True, None if resume == 'auto' else str(resume)
    randomness = dict(cfg.get('randomness') or {})
    cfg.randomness = ConfigDict(
        randomness,
        seed=randomness.get('seed') if seed is None else seed,
        deterministic=deterministic or randomness.get('deterministic', False),
    )
    return cfg


def find_config(path: str | Path) -> Path:
    """Return the config file, looked up in the current folder and then in the project.

    Raises:
        UserError: There is no such file; the remedy names the likely ones.
    """
    for candidate in (Path(path), PROJECT / path):
        if candidate.is_file():
            return candidate.resolve()
    files = (PROJECT / 'configs').rglob('*.py')
    leaves = [str(leaf.relative_to(PROJECT)) for leaf in files if '_base_' not in leaf.parts]
    raise UserError(f'config file not found: {path}', did_you_mean(str(path), leaves, limit=0))


def _read(path: Path) -> Config:
    try:
        cfg = Config.fromfile(str(path))
    except (SyntaxError, NameError, AttributeError, KeyError, ImportError) as error:
        raise UserError(
            f'cannot read the config {path}: {type(error).__name__}: {error}',
            'correct the file; see configs/ for others',
        ) from error
    # The text of the config goes into the log and every checkpoint; prettifying it takes a second each time.
    return Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)


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
        fit_classes(cfg, _check(cfg, ('train', 'val')))
        start = resume_point(cfg)
        add_run_defaults(cfg, start_epoch=start.get('epoch', 0), start_iter=start.get('iter', 0))
        runner = _build_runner(cfg)
        if start:
            notice(f'continuing {cfg.load_from} after {start["iter"]} steps')
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
        fit_classes(cfg, _check(cfg, ('test',)))
        add_test_defaults(cfg, show_dir=None if show_dir is None else str(show_dir), tta=tta)
        metrics = {name: float(value) for name, value in _build_runner(cfg).test().items()}
    if out is not None and is_main_process():
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(metrics, indent=2) + '\n')
    return metrics


def _check(cfg: Config, splits: tuple[str, ...]) -> tuple[str, ...]:
    check_paths(cfg, splits)
    check_work_dir(cfg.work_dir)
    return splits


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


@functools.cache
def say_device() -> None:
    """Say where the run computes, if not on a GPU of the usual kind; once in a process."""
    text = describe_device()
    if text is not None:
        notice(text)


def _build_runner(cfg: Config) -> Runner:
    # MMEngine keeps log, message hub and visualizer under this name: two runs of a process must not share it.
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}-{next(_run_number)}'
    if cfg.get('visualizer'):
        cfg.visualizer.pop('name', None)
    say_device()
    if cfg.randomness.get('deterministic'):
        prepare_determinism()
    return DenseRunner.from_cfg(cfg)
