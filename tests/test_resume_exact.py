"""Does a run end bit for bit where it would have ended, wherever it was stopped and whatever it was made of?"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_run import assert_equal, end_of, run_in_two_processes, saved, toy_config

from dense.engine.launch import train
from dense.errors import UserError

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tiny checkpoints: no waiting for the disk, no asking git for each."""
    monkeypatch.setattr('os.fsync', lambda descriptor: None)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', lambda: '')


def resumed(cfg: Config, checkpoint: Path, work_dir: Path) -> None:
    cfg = copy.deepcopy(cfg)
    cfg.update(work_dir=str(work_dir), resume=True, load_from=str(checkpoint))
    train(cfg)


def check(tmp_path: Path, cfg: Config, stops: list[str], later: dict[str, Any] | None = None) -> None:
    """Train to the end; go on from each of the checkpoints; compare."""
    train(cfg)
    expected = saved(end_of(Path(cfg.work_dir)))
    for stop in stops:
        again = copy.deepcopy(cfg)
        again.merge_from_dict(later or {})
        resumed(again, Path(cfg.work_dir) / stop, tmp_path / f'from-{stop}')
        assert_equal(saved(end_of(tmp_path / f'from-{stop}')), expected, stop)


@pytest.mark.parametrize('counts', [2, 3, 4])
@pytest.mark.parametrize('interval', [1, 2, 3])
def test_inside_an_update_of_several_steps(interval: int, counts: int, tmp_path: Path) -> None:
    """11 steps: no number of counts divides them, so the last update is smaller."""
    cfg = toy_config(tmp_path / 'whole', steps=11, optim_wrapper=dict(accumulative_counts=counts))
    cfg.default_hooks.checkpoint.interval = interval
    steps = list(range(interval, 11, interval))
    inside = [step for step in steps if step % counts]
    check(tmp_path, cfg, [f'iter_{step}.pth' for step in (inside if interval == 1 else inside[-1:])])
    assert sorted(int(path.stem[5:]) for path in (tmp_path / 'whole').glob('iter_*.pth')) == [*steps, 11]


EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)
LATE_EMA = dict(type='EMAHook', momentum=0.1, begin_iter=4)
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='score', patience=1, rule='greater', threshold=10.0, by_epoch=True)
SCHEDULERS = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=3),
    dict(type='CosineAnnealingMomentum', by_epoch=False, begin=2, end=9, eta_min=0.7),
]
EARLY = dict(type='EarlyStoppingHook', monitor='score', rule='greater', patience=2, min_delta=10.0)
SETTINGS: dict[str, dict[str, Any]] = {
    'clipped': dict(optim_wrapper=dict(accumulative_counts=3, clip_grad=dict(max_norm=0.1))),
    'mixed precision': dict(
        optim_wrapper=dict(type='DenseAmpOptimWrapper', dtype='bfloat16', accumulative_counts=2)
    ),
    'averaged': dict(custom_hooks=[EMA], optim_wrapper=dict(accumulative_counts=2)),
    'averaged later': dict(custom_hooks=[LATE_EMA]),
    'several schedulers': dict(param_scheduler=SCHEDULERS),
    'rate that falls with the score': dict(param_scheduler=[PLATEAU]),
    'stopped early': dict(custom_hooks=[EARLY]),
    'best is kept': dict(default_hooks=dict(checkpoint=dict(save_best='score', rule='less'))),
    'last batch dropped': dict(train_dataloader=dict(batch_size=3, drop_last=True)),
    'batches by shape': dict(train_dataloader=dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'))),
    'fixed number of batches': dict(train_dataloader=dict(num_batch_per_epoch=3)),
    'repeated': dict(
        train_dataloader=dict(
            dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(type='ToyNumbers'))
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize('epochs', [False, True], ids=['steps', 'epochs'])
@pytest.mark.parametrize('name', SETTINGS)
def test_settings(name: str, epochs: bool, tmp_path: Path) -> None:
    cfg = toy_config(tmp_path / 'whole', epochs=epochs, steps=15, **SETTINGS[name])
    check(tmp_path, cfg, [f'iter_{step}.pth' for step in ((5, 8) if epochs else (4, 7))])


@HOOKS.register_module()
class KillHook(Hook):
    """Ends the run in the validation after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_val_epoch(self, runner: Any) -> None:
        if runner.iter == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize('name', ['rate that falls with the score', 'stopped early', 'best is kept'])
def test_killed_in_a_validation(name: str, tmp_path: Path) -> None:
    cfg = toy_config(tmp_path / 'whole', steps=10, **SETTINGS[name])
    train(cfg)
    killed = copy.deepcopy(cfg)
    killed.work_dir = str(tmp_path / 'killed')
    killed.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='KillHook', step=4)]
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    again = copy.deepcopy(cfg)
    again.update(work_dir=killed.work_dir, resume=True)
    train(again)
    assert_equal(saved(end_of(tmp_path / 'killed')), saved(end_of(tmp_path / 'whole')))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with something else in it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path.with_name('changed.pth'))
    return path.with_name('changed.pth')


# What of the checkpoint after step 3 of updates of 2 is changed, other options, what the error says.
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], dict[str, Any], str]] = {
    'gradients missing': (lambda content: content.pop('accumulation'), {}, 'inside an update of 2'),
    'other counts': (lambda content: None, dict(optim_wrapper=dict(accumulative_counts=4)), '2 accumulative_counts'),
    'other images per step': (
        lambda content: content['meta'].update(images_per_step=6),
        {},
        'with 6 images per step; this run has 1 x 2 = 2',
    ),
    'no optimizer': (lambda content: content.pop('optimizer'), {}, 'optimizer missing'),
    'no schedulers': (lambda content: content.pop('param_schedulers'), {}, 'param_schedulers missing'),
    'images of a cache': (
        lambda content: None,
        dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type='mmdet.CachedMosaic')]))),
        'CachedMosaic mixes images',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_exact_is_refused(name: str, tmp_path: Path) -> None:
    change, options, cause = REFUSED[name]
    cfg = toy_config(tmp_path, steps=4, optim_wrapper=dict(accumulative_counts=2), param_scheduler=SCHEDULERS)
    train(cfg)
    cfg.update(resume=True, load_from=str(changed(tmp_path / 'iter_3.pth', change)))
    cfg.merge_from_dict(options)
    with pytest.raises(UserError, match=cause):
        train(cfg)


def test_weights_of_any_checkpoint_can_be_a_start(tmp_path: Path) -> None:
    train(toy_config(tmp_path / 'first', steps=4, optim_wrapper=dict(accumulative_counts=3)))
    assert 'accumulation' in torch.load(tmp_path / 'first' / 'iter_1.pth', weights_only=True)
    assert 'accumulation' not in torch.load(tmp_path / 'first' / 'iter_3.pth', weights_only=True)
    runner = train(toy_config(tmp_path / 'second', steps=2, load_from=str(tmp_path / 'first' / 'iter_1.pth')))
    assert runner.iter == 2


BY_EPOCH = ('clipped', 'averaged', 'several schedulers', 'rate that falls with the score', 'best is kept')


@pytest.mark.parametrize('name', BY_EPOCH)
def test_settings_saved_by_epoch(name: str, tmp_path: Path) -> None:
    """5 steps an epoch: an update of two or three steps goes on in the next."""
    cfg = toy_config(tmp_path / 'whole', epochs=True, steps=15, **SETTINGS[name])
    cfg.default_hooks.checkpoint.by_epoch = True
    check(tmp_path, cfg, ['epoch_1.pth', 'epoch_2.pth'])


SEVERAL = """
from pathlib import Path
from toy_run import toy_config
from dense.engine.launch import train
work_dir = Path({work_dir!r})
for name, more in (('whole', {{}}), ('again', dict(resume=True, load_from=str(work_dir / 'whole' / 'iter_3.pth')))):
    cfg = toy_config(work_dir / name, steps=7, launcher='pytorch', optim_wrapper=dict(accumulative_counts=4), **more)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    train(cfg)
"""


@pytest.mark.slow
def test_each_process_gets_its_own_gradients_back(tmp_path: Path) -> None:
    """Between two updates, processes hold the gradients of their own images only."""
    run_in_two_processes(tmp_path, SEVERAL.format(work_dir=str(tmp_path)))
    first, second = torch.load(tmp_path / 'whole' / 'iter_3.pth', weights_only=True)['accumulation']
    assert not torch.equal(first['']['gradients'][0], second['']['gradients'][0])
    assert_equal(saved(end_of(tmp_path / 'again')), saved(end_of(tmp_path / 'whole')))
