"""From a config to a trained and tested model: what the commands in ``tools/`` and the demo call.

>>> cfg = load_config('configs/mini/mask-rcnn_inceptionnext-a_fpn_400i_mini-160x160.py', data_root='data/mini')
>>> train(cfg)
>>> test(cfg, 'work_dirs/.../iter_400.pth')
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from dense.errors import UserError, did_you_mean

PROJECT = Path(__file__).resolve().parent.parent
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
        amp: Train in mixed precision.
        launcher: ``'none'``, or how the processes of a distributed run were started: ``'pytorch'``, ``'slurm'``, ``'mpi'``.
        seed: Seed of every random number; the config's, or else 0.
        deterministic: Use deterministic algorithms even where they are slower.

    Raises:
        UserError: The file, a key or a checkpoint does not exist.
    """
    cfg = Config.fromfile(str(find_config(path)))
    if options:
        cfg.merge_from_dict(dict(options))
    if data_root is not None:
        replace_data_root(cfg, str(data_root))
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or PROJECT / 'work_dirs' / Path(cfg.filename).stem)
    cfg.launcher = launcher
    if amp:
        cfg.optim_wrapper.type = 'DenseAmpOptimWrapper'
    if load_from is not None:
        cfg.load_from = str(load_from)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    randomness = dict(cfg.get('randomness') or {})
    randomness['seed'] = seed if seed is not None else randomness.get('seed') or 0
    cfg.randomness = ConfigDict(randomness, deterministic=deterministic or randomness.get('deterministic', False))
    return cfg


def find_config(path: str | Path) -> Path:
    """Return the config file, looked up in the current folder and then in the project.

    Raises:
        UserError: There is no such file; the remedy names the likely ones.
    """
    for candidate in (Path(path), PROJECT / path):
        if candidate.is_file():
            return candidate.resolve()
    leaves = [
        str(leaf.relative_to(PROJECT)) for leaf in (PROJECT / 'configs').rglob('*.py') if '_base_' not in leaf.parts
    ]
    raise UserError(f'config file not found: {path}', did_you_mean(str(path), leaves))


def replace_data_root(cfg: Config, root: str) -> None:
    """Point every data set and evaluator of a config at another copy of the data, in place."""
    for key in ('train', 'val', 'test'):
        _move(cfg.get(f'{key}_dataloader'), root)
    old = cfg.get('data_root')
    for key in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(key) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            ann_file = evaluator.get('ann_file')
            if old and ann_file and str(ann_file).startswith(str(old)):
                evaluator['ann_file'] = str(Path(root) / str(ann_file)[len(str(old)) :].lstrip('/'))
    cfg.data_root = root


def _move(node: Any, root: str) -> None:
    if isinstance(node, dict):
        if 'data_root' in node:
            node['data_root'] = root
        for value in node.values():
            _move(value, root)
    elif isinstance(node, list | tuple):
        for value in node:
            _move(value, root)


def train(cfg: Config) -> Runner:
    """Train as the config says, and return the runner with the trained model.

    Raises:
        UserError: Something that the user can mend, found before the first step where possible.
    """
    runner = build_runner(cfg)
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
        checkpoint: File with the weights.
        out: JSON file for the metrics.
        show_dir: Folder for pictures of input, truth and prediction side by side.
        tta: Average the predictions over the config's test-time augmentations.

    Returns:
        Metric name -> value, as the evaluators report them.
    """
    cfg = Config(cfg.to_dict(), filename=cfg.filename)
    cfg.load_from, cfg.resume = str(checkpoint), False
    metrics = {name: float(value) for name, value in build_runner(cfg).test().items()}
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(metrics, indent=2) + '\n')
    return metrics


def build_runner(cfg: Config) -> Runner:
    """Build MMEngine's runner from a config, under a name that no other run of this process has."""
    cfg.experiment_name = f'{Path(cfg.filename or "run").stem}-{next(_run_number)}'
    if not torch.cuda.is_available():
        cfg.setdefault('env_cfg', {})['cudnn_benchmark'] = False
    return Runner.from_cfg(cfg)
