"""Reads a config file and applies the user's choices: :func:`load_config`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from dense.console.output import quiet_libraries
from dense.data.relocate import find_data, replace_data_root
from dense.engine.options import apply_options, check_options, check_top_level
from dense.engine.precision import ask_for_mixed_precision
from dense.errors import UserError
from dense.project import IS_CLONE, PROJECT, find_config, work_dirs


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
    save_every: float | None = None,
) -> Config:
    """Read a config file and apply the user's choices.

    Args:
        path: Config file; see :func:`dense.project.find_config`.
        work_dir: Where logs and checkpoints go; by default ``work_dirs/<config name>`` of the clone, or below the
            current folder where there is no clone.
        data_root: Root of the data, instead of the one in the config.
        options: Config keys in dotted form and their new values.
        resume: ``'auto'`` continues from the newest checkpoint of ``work_dir``; otherwise a checkpoint file to use.
        load_from: Checkpoint file whose weights training starts from.
        amp: Train in mixed precision; refused on a CPU without bfloat16, unless the config sets ``dtype``.
        compiled: Compile the backbone; a config's own ``compile`` (arguments of ``torch.compile``) is kept.
        auto_scale_lr: Scale the learning rate with the images per step, relative to the config's own number.
        launcher: ``'none'``, or what started the processes of a distributed run: ``'pytorch'``, ``'slurm'``, ``'mpi'``.
        seed: Seed of every random number; by default that of the resumed run, of the config, or else 0.
        deterministic: Use deterministic algorithms even where they are slower.
        save_every: Minutes between two checkpoints, besides those that the config asks for.

    Raises:
        UserError: The file, a key or a checkpoint does not exist, or the config does not state its images per step.
    """
    cfg = read_config(path)
    _set_options(cfg, options or {})
    _place(cfg, work_dir, data_root)
    _set_computation(cfg, amp=amp, compiled=compiled)
    if auto_scale_lr:
        _enable_scaled_rate(cfg)
    _set_origin(cfg, resume, load_from)
    _set_randomness(cfg, seed, deterministic)
    cfg.launcher = launcher
    if save_every is not None:
        cfg.save_every = save_every
    return cfg


def read_config(path: str | Path) -> Config:
    """Read a config file without any changes.

    Args:
        path: Config file; see :func:`dense.project.find_config`.

    Raises:
        UserError: The file does not exist or cannot be read, or a key at its top level is misspelt.
    """
    with quiet_libraries():
        cfg = _read(find_config(path))
    check_top_level(cfg)
    return cfg


def _set_options(cfg: Config, options: Mapping[str, Any]) -> None:
    check_options(cfg, options)
    apply_options(cfg, options)
    if options:  # what was set by hand outranks the data, and should appear in the logs and checkpoints of the run
        cfg.cfg_options = {**(cfg.get('cfg_options') or {}), **options}


def _place(cfg: Config, work_dir: str | Path | None, data_root: str | Path | None) -> None:
    if data_root is not None:
        replace_data_root(cfg, str(data_root))
    if IS_CLONE:
        find_data(cfg, PROJECT)
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or work_dirs() / Path(cfg.filename).stem)


def _set_computation(cfg: Config, *, amp: bool, compiled: bool) -> None:
    if amp:
        ask_for_mixed_precision(cfg)
    if compiled:
        cfg.compile = cfg.get('compile') or True


def _enable_scaled_rate(cfg: Config) -> None:
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise UserError(
            f'{cfg.filename} does not say how many images per step its learning rate is meant for',
            'add --cfg-options "auto_scale_lr={\'base_batch_size\': NUMBER}", or start without --auto-scale-lr',
        )
    cfg.auto_scale_lr.enable = True


def _set_origin(cfg: Config, resume: str | None, load_from: str | Path | None) -> None:
    if load_from is not None:
        cfg.load_from = str(load_from)
    if resume is not None:
        cfg.resume, cfg.load_from = True, None if resume == 'auto' else str(resume)


def _set_randomness(cfg: Config, seed: int | None, deterministic: bool) -> None:
    randomness = dict(cfg.get('randomness') or {})
    cfg.randomness = ConfigDict(
        randomness,
        seed=randomness.get('seed') if seed is None else seed,
        deterministic=deterministic or randomness.get('deterministic', False),
    )


def _read(path: Path) -> Config:
    try:
        cfg = Config.fromfile(str(path))
    except (SyntaxError, NameError, AttributeError, KeyError, ImportError, TypeError, ValueError) as error:
        remedy = 'correct the file; see configs/ for examples'
        if '_delete_=True' in str(error):  # a dict where the base has text, such as an arch of your own
            remedy = 'add _delete_=True to the dict, so that it replaces the value of the base config'
        raise UserError(f'cannot read the config {path}: {type(error).__name__}: {error}', remedy) from error
    # The text of the config goes into the log and every checkpoint; formatting it takes a second each time.
    return Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)
