"""Adds to a config what every run gets: checked data, repeatable steps, safe checkpoints, a readable screen.

``import dense`` registers the classes named here.
"""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

import dense.distributed.agreement
import dense.visualization.hook  # noqa: F401  (both register a hook)
from dense.cpu.defaults import set_cpu_defaults
from dense.data.run_inputs import RunInputs
from dense.engine.precision import fit_precision, warn_of_slow_evaluation
from dense.errors import UserError


def add_run_defaults(cfg: Config, inputs: RunInputs) -> None:
    """Add the defaults to a training config, in place.

    Args:
        cfg: Config of a run; its seed is set.
        inputs: What the run reads, and where it starts.

    Raises:
        UserError: With this data no run can be repeated.
    """
    _refuse_caches(cfg)
    set_cpu_defaults(cfg)
    fit_precision(cfg)
    warn_of_slow_evaluation(cfg, 'val_cfg')
    seed = cfg.randomness.seed
    loader = cfg.train_dataloader
    loader.dataset = dict(type='mmengine.SeededDataset', seed=seed, dataset=_checked(inputs, loader.dataset, False))
    loader.sampler = dict(type='mmengine.whole_order', sampler=loader.get('sampler'), seed=seed)
    loader.batch_sampler = dict(
        type='mmengine.SeededBatchSampler',
        inner=loader.get('batch_sampler'),
        drop_last=loader.pop('drop_last', False),
        start_epoch=inputs.start.epoch,
        start_iter=inputs.start.iter,
    )
    if cfg.get('val_dataloader'):
        cfg.val_dataloader.dataset = _checked(inputs, cfg.val_dataloader.dataset, True)
    _replace_checkpoint_hook(cfg)
    _add_hooks(
        cfg,
        dict(type='SameDataHook'),
        dict(type='SeededStepHook', seed=seed),
        dict(type='GlobalBatchHook'),
        dict(type='AccumulationHook'),
        dict(type='SameBuffersHook'),  # all processes take part, also in a validation that is given up at once
        dict(type='PartStateHook'),
        dict(type='StopHook', save_every=cfg.get('save_every')),
        dict(type='DueValidationHook'),
        dict(type='FiniteLossHook', on_nonfinite=cfg.get('on_nonfinite', 'stop')),
        dict(type='CheckedDataHook', max_unreadable=cfg.get('max_unreadable')),
        dict(type='CheckpointMatchHook', fine_tune=not cfg.get('resume')),
        dict(type='DataWaitHook'),
        dict(type='RunRecordHook', start_iter=inputs.start.iter),
        dict(type='ProgressBarHook'),
    )


def add_test_defaults(cfg: Config, inputs: RunInputs, *, show_dir: str | None = None, tta: bool = False) -> None:
    """Add the defaults to a config for testing, in place.

    Args:
        cfg: Config of a run.
        inputs: What the run reads.
        show_dir: Folder for pictures, or None.
        tta: Average over the config's test-time augmentations.

    Raises:
        UserError: The config has no test-time augmentations.
    """
    cfg.randomness.seed = cfg.randomness.seed or 0
    warn_of_slow_evaluation(cfg, 'test_cfg')
    if tta:
        _use_tta(cfg)
    cfg.test_dataloader.dataset = _checked(inputs, cfg.test_dataloader.dataset, True)
    _replace_checkpoint_hook(cfg)
    _add_hooks(
        cfg,
        dict(type='SameDataHook'),
        dict(type='CheckedDataHook'),
        dict(type='CheckpointMatchHook'),
        dict(type='ProgressBarHook'),
    )
    if show_dir is not None:
        _add_hooks(cfg, dict(type='PictureHook', out_dir=show_dir))


def _checked(inputs: RunInputs, dataset: Any, test_mode: bool) -> ConfigDict:
    return ConfigDict(
        type='mmengine.CheckedDataset',
        dataset=dataset,
        num_classes=inputs.num_classes,
        test_mode=test_mode,
    )


def _refuse_caches(cfg: Config) -> None:
    for name in _type_names([cfg.train_dataloader.dataset, cfg.get('custom_hooks')]):
        if name.split('.')[-1].startswith('Cached'):
            raise UserError(
                f'{name} mixes images that its process happened to load before: no run with it can be repeated or '
                'resumed exactly',
                f'use {name.split(".")[-1].removeprefix("Cached")} in a MultiImageMixDataset, which draws its images '
                'by the seed',
            )


def _type_names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield str(node.get('type', ''))
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from _type_names(item)


def _replace_checkpoint_hook(cfg: Config) -> None:
    default = cfg.setdefault('default_hooks', ConfigDict())
    saving = default.setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    # Same arguments, written safely; a config with its own hook keeps it.
    if saving is not None and saving.type == 'CheckpointHook':
        saving.type = 'mmengine.AtomicCheckpointHook'


def _add_hooks(cfg: Config, *new: dict[str, Any]) -> None:
    present = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = present + [hook for hook in new if hook['type'] not in {old.get('type') for old in present}]


def _use_tta(cfg: Config) -> None:
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise UserError(
            'the config has no test-time augmentation (tta_model and tta_pipeline)',
            'test without --tta, or add both to the config; see configs/_base_/datasets',
        )
    # The wrapper's config may change the model inside it from that of single-scale testing.
    cfg.merge_from_dict({'model': cfg.tta_model.get('module', {})})
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    while dataset.get('dataset') is not None:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
