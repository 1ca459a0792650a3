"""Does a stopped and resumed run end exactly where an uninterrupted one does?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from dense.engine.launch import load_config, train

pytestmark = pytest.mark.smoke

EPOCHS: dict[str, Any] = {
    'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=2),
    'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True),
    'train_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler'),
    'log_processor.by_epoch': True,
}
WORKERS = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
GATHERED = {'optim_wrapper.accumulative_counts': 2}
CLIPPED = {'optim_wrapper.clip_grad': dict(max_norm=1.0)}
PLAIN_STEPS: list[dict[str, Any]] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=False),  # objects go only to images of the same size
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


def mosaics(options: dict[str, Any]) -> dict[str, Any]:
    """Copies objects from one image into another in the first epoch, and no longer in the second."""
    inner = {'type': 'CocoFolderDataset', 'data_root': 'data/own'}
    inner |= {key: options[f'train_dataloader.dataset.{key}'] for key in ('ann_file',)}
    inner |= {'data_prefix': dict(img='images/training/'), 'pipeline': PLAIN_STEPS[:3]}
    mixed = dict(
        type='MultiImageMixDataset',
        dataset=inner,
        pipeline=[dict(type='CopyPaste', max_num_pasted=3), *PLAIN_STEPS[3:]],
    )
    kept = {key: value for key, value in options.items() if not key.startswith('train_dataloader.dataset.')}
    switch = dict(type='mmdet.PipelineSwitchHook', switch_epoch=1, switch_pipeline=PLAIN_STEPS[3:])
    return {**kept, 'train_dataloader.dataset': mixed, 'custom_hooks': [switch]}


# What runs: task, number of steps, options; then each resumed run: the step after which, and its own options.
RUNS: dict[str, tuple[str, int, dict[str, Any], list[tuple[int, dict[str, Any]]]]] = {
    # The uninterrupted run validates before the step, the resumed one does not.
    'detector counted in steps': ('det', 4, {'train_cfg.val_interval': 2, **CLIPPED}, [(2, {})]),
    # 3 steps are an epoch: once between two, once inside.
    'detector counted in epochs': ('det', 6, EPOCHS, [(3, {}), (4, {})]),
    'detector on mixed images': ('det', 6, {**EPOCHS, **GATHERED}, [(3, WORKERS)]),
    # Processes load 8 samples ahead of the step; after 3 steps an update is half done.
    'segmentor': ('seg', 4, GATHERED, [(2, {}), (3, WORKERS)]),
}


def losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """Logged losses and learning rate of every step."""
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row['step']: {k: row[k] for k in row if 'loss' in k or k == 'lr'} for row in rows if 'loss' in row}


# The exactness of every setting is tested on toy runs (test_resume_exact.py).
LONG = ('segmentor', 'detector counted in epochs')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RUNS]
)
def test_resumed_run_equals_uninterrupted_run(
    name: str,
    tiny_data: Path,
    tmp_path: Path,
    tiny_options: Callable[..., dict[str, Any]],
    tiny_config_files: dict[str, str],
) -> None:
    task, num_steps, options, resumed = RUNS[name]

    def config(work_dir: Path, more: dict[str, Any], resume: str | None = None) -> Config:
        every_step = {'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.max_keep_ckpts': -1}
        noisy = {'model.backbone.drop_path_rate': 0.3}
        tiny = tiny_options(task, tiny_data, iters=num_steps)
        tiny = mosaics(tiny) if 'mixed' in name else tiny
        merged = {**tiny, **every_step, **noisy, **options, **more}
        if 'train_cfg' in merged:
            merged = {key: value for key, value in merged.items() if not key.startswith('train_cfg.')}
        seed = None if resume else 7  # the resumed run takes it from the checkpoint
        return load_config(
            tiny_config_files[task], work_dir=work_dir, data_root=tiny_data, options=merged, resume=resume, seed=seed
        )

    expected = train(config(tmp_path / 'whole', {}))
    before = losses(tmp_path / 'whole')
    assert set(before) == set(range(1, num_steps + 1))
    assert len({row['loss'] for row in before.values()}) == num_steps, 'equal steps would prove nothing'
    for stop, more in resumed:
        work_dir = tmp_path / f'from-{stop}'
        runner = train(config(work_dir, more, resume=str(tmp_path / 'whole' / f'iter_{stop}.pth')))
        assert runner.iter == expected.iter == num_steps
        after = losses(work_dir)
        assert after == {step: row for step, row in before.items() if step > stop}
        pairs = zip(expected.model.state_dict().items(), runner.model.state_dict().items(), strict=True)
        for (key, tensor), (_, other) in pairs:
            assert torch.equal(tensor, other), key
