"""Does a stopped and resumed run end exactly where an uninterrupted one does?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from dense.launch import load_config, train

# task, processes that load data, counted in epochs, resumed after
CASES = [
    ('det', 0, False, 2),
    ('det', 0, True, 3),  # between two epochs of 3 steps
    ('det', 0, True, 4),  # inside an epoch
    ('seg', 0, False, 2),
    ('seg', 2, False, 4),  # 8 samples are loaded ahead of the step
]
ITERS = 6
ran: list[tuple] = []


def by_epoch() -> dict[str, Any]:
    """Options that count the run in epochs of 3 steps and still save every step."""
    return {
        'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True),
        'log_processor.by_epoch': True,
    }


def tiny_config(path: str, options: dict[str, Any], root: Path, work_dir: Path, resume: str | None = None) -> Config:
    noisy = {
        'model.backbone.drop_path_rate': 0.3,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
    }
    return load_config(
        path, work_dir=work_dir, data_root=root, options={**options, **noisy}, resume=resume, seed=None if resume else 7
    )


def losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """Losses of every step, as logged; steps that were run again overwrite themselves."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                found[row['step']] = {key: value for key, value in row.items() if 'loss' in key or key == 'lr'}
    return found


@pytest.mark.parametrize(('task', 'num_workers', 'epochs', 'stop'), CASES)
def test_resumed_run_equals_uninterrupted_run(
    task: str,
    num_workers: int,
    epochs: bool,
    stop: int,
    tiny_data: Path,
    tmp_path: Path,
    tiny_options: Callable[..., dict[str, Any]],
    tiny_config_files: dict[str, str],
) -> None:
    options = tiny_options(task, tiny_data, iters=ITERS, num_workers=num_workers)
    if epochs:
        options = {key: value for key, value in options.items() if not key.startswith('train_cfg')} | by_epoch()
    path, whole, resumed = tiny_config_files[task], tmp_path / 'whole', tmp_path / 'resumed'
    options['val_dataloader.num_workers'] = 0
    options['val_dataloader.persistent_workers'] = False

    expected = train(tiny_config(path, options, tiny_data, whole))
    # The uninterrupted run saved every step: the second one starts from one of its files, in its own folder.
    runner = train(tiny_config(path, options, tiny_data, resumed, resume=str(whole / f'iter_{stop}.pth')))

    assert runner.iter == expected.iter == ITERS
    for (name, tensor), (_, other) in zip(
        expected.model.state_dict().items(), runner.model.state_dict().items(), strict=True
    ):
        assert torch.equal(tensor, other), name
    before, after = losses(whole), losses(resumed)
    assert set(before) == set(range(1, ITERS + 1)) and set(after) == set(range(stop + 1, ITERS + 1))
    assert {step: before[step] for step in after} == after
    assert len({str(row) for row in before.values()}) == ITERS, 'the steps do not differ, so equality proves nothing'
    ran.append((task, num_workers, epochs, stop))


def test_other_seed_gives_another_run(
    tiny_data: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]], tiny_config_files: dict[str, str]
) -> None:
    options = tiny_options('seg', tiny_data, iters=1)
    sums = []
    for seed in (0, 0, 1):
        cfg = load_config(
            tiny_config_files['seg'],
            work_dir=tmp_path / str(len(sums)),
            data_root=tiny_data,
            options=options,
            seed=seed,
        )
        sums.append(sum(float(tensor.double().sum()) for tensor in train(cfg).model.state_dict().values()))
    assert sums[0] == sums[1] != sums[2]


def test_every_case_ran() -> None:
    assert len(CASES) == 5 and ran == CASES
