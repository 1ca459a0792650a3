"""How long does a step wait for a checkpoint? Run by ``make test-breaking``; the figures go to its file."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import note
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from torch import nn
from toy_run import toy_config

from dense.engine.launch import train

pytestmark = [pytest.mark.breaking, pytest.mark.timeout(1800)]

WIDTH, DEPTH, COPIES = 1024, 8, 256
STEPS, EVERY = 32, 8


@MODELS.register_module()
class HeavyNet(BaseModel):
    """About 8 million parameters: a checkpoint of 100 MB with AdamW, and a step of some tenths of a second."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(DEPTH)]
        self.layers = nn.Sequential(nn.Linear(4, WIDTH), *layers, nn.Linear(WIDTH, 1))

    def forward(self, x: list[torch.Tensor], y: list[torch.Tensor], mode: str = 'tensor') -> Any:
        out = self.layers(torch.stack(x).repeat(COPIES, 1))
        return dict(loss=(out - torch.stack(y).repeat(COPIES, 1)).square().mean())


@HOOKS.register_module()
class StepClock(Hook):
    """Takes the time between the starts of two steps: wall clock, with everything that hooks do."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.starts: list[float] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.starts.append(time.perf_counter())


def durations(work_dir: Path, interval: int, background: bool) -> list[float]:
    """Seconds of each step but the last; the first three warm up."""
    cfg = toy_config(work_dir, steps=STEPS, model=dict(type='HeavyNet'), custom_hooks=[dict(type='StepClock')])
    cfg.default_hooks.checkpoint.update(interval=interval, max_keep_ckpts=1, background=background)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner = train(cfg)
    (clock,) = [hook for hook in runner.hooks if isinstance(hook, StepClock)]
    return [later - start for start, later in zip(clock.starts, clock.starts[1:], strict=False)]


def test_a_step_hardly_waits_for_a_checkpoint(tmp_path: Path) -> None:
    """Compared are steps of one run: those that save and those while a file is written, with the others."""
    figures: dict[str, Any] = {}
    for name, background in (('waiting', False), ('background', True)):
        seconds = durations(tmp_path / name, EVERY, background)
        saving = set(range(EVERY - 1, STEPS - 1, EVERY))
        near = {step + more for step in saving for more in (1, 2)}
        quiet = statistics.median(seconds[step] for step in range(3, STEPS - 1) if step not in saving | near)
        over = statistics.median(seconds[step] for step in saving) / quiet - 1
        after = statistics.median(seconds[step] for step in near if step < STEPS - 1) / quiet - 1
        figures[name] = dict(step_s=round(quiet, 3), saving_step=f'{over:+.1%}', two_steps_after=f'{after:+.1%}')
    size = (tmp_path / 'background' / f'iter_{STEPS}.pth').stat().st_size
    note(delay=dict(checkpoint_mb=round(size / 1e6), cores=torch.get_num_threads(), **figures))
    assert float(figures['background']['saving_step'].rstrip('%')) < float(
        figures['waiting']['saving_step'].rstrip('%')
    )
