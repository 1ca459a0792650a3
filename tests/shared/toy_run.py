"""Runs that train a three-layer network on numbers, with all the steps of a real run, in a tenth of a second."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

import dense  # noqa: F401

PROJECT = Path(__file__).resolve().parents[2]
NUM_SAMPLES = 10


@DATASETS.register_module()
class ToyNumbers:
    """Pairs of four numbers and the sine of their sum.

    Args:
        noise: Of the numbers; drawn anew each time.
    """

    metainfo: ClassVar[dict[str, Any]] = {}

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise

    def full_init(self) -> None:
        """There is nothing to read."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([1.0, index, index % 3, index % 2]) / 4 + float(np.random.rand()) * self.noise
        return dict(x=x, y=x.sum(0, keepdim=True).sin())

    def get_data_info(self, index: int) -> dict[str, float]:
        """Widths and heights for samplers that group by them."""
        return dict(width=1 + index % 2 * 2, height=2)


@MODELS.register_module()
class ToyNet(BaseModel):
    """Two linear layers with dropout and a batch norm."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: list[torch.Tensor], y: list[torch.Tensor], mode: str = 'tensor') -> Any:
        out = self.layers(torch.stack(x))
        error = (out.float() - torch.stack(y)).square()
        return dict(loss=error.mean()) if mode == 'loss' else list(error.flatten())


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Mean error; smaller is better."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(error) for error in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(score=1 - float(np.mean(results)))


def toy_config(work_dir: Path, *, epochs: bool = False, steps: int = 12, **changes: Any) -> Config:
    """Config of a run.

    Args:
        work_dir: Its folder.
        epochs: Whether it counts epochs of 5 steps, in place of steps.
        steps: Length in steps.
        **changes: Top-level keys; dicts are merged into what is there.
    """
    dataset = dict(type='ToyNumbers')
    val_loader = dict(
        batch_size=5,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, noise=0.0),
    )
    sampler = dict(type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=True)
    loop = dict(type='EpochBasedTrainLoop', max_epochs=-(-steps // 5), val_interval=1)
    cfg = Config(
        dict(
            default_scope='mmengine',
            model=dict(type='ToyNet'),
            train_dataloader=dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset),
            val_dataloader=val_loader,
            test_dataloader=val_loader,
            val_evaluator=dict(type='ToyMetric'),
            test_evaluator=dict(type='ToyMetric'),
            val_cfg=dict(),
            test_cfg=dict(),
            train_cfg=loop if epochs else dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=4),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.05)),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False),
                logger=dict(type='LoggerHook', interval=1),
            ),
            log_processor=dict(by_epoch=epochs),
            work_dir=str(work_dir),
            launcher='none',
            randomness=dict(seed=3),
        ),
        format_python_code=False,
    )
    cfg.merge_from_dict(ConfigDict(changes))
    return cfg


def saved(path: Path) -> dict[str, Any]:
    """What the end of a run left: weights, averages, optimizer, scheduler, scores."""
    content = torch.load(path, weights_only=True)
    runtime = content['message_hub']['runtime_info']
    kept = {key: content[key] for key in content if key not in ('meta', 'message_hub')}
    return {**kept, 'scores': {key: runtime[key] for key in runtime if key.startswith('best_score')}}


def assert_equal(got: Any, expected: Any, name: str = '') -> None:
    assert type(got) is type(expected), name
    if isinstance(expected, dict):
        assert set(got) == set(expected), name
        for key in expected:
            assert_equal(got[key], expected[key], f'{name}.{key}')
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), name
        for place, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_equal(one, other, f'{name}.{place}')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), name
    else:
        assert got == expected, name


def end_of(work_dir: Path) -> Path:
    return Path((work_dir / 'last_checkpoint').read_text())


def same_end(work_dir: Path, other: Path) -> None:
    """Check that two runs ended with the same state, bit for bit."""
    assert_equal(saved(end_of(work_dir)), saved(end_of(other)))


def two_processes(folder: Path, body: str) -> list[str]:
    """Write a script, and return the command with which torchrun starts it in two processes.

    Args:
        folder: Where the script is written.
        body: Python that may import this module and ``dense``.
    """
    script, path = folder / 'run.py', [str(PROJECT), str(PROJECT / 'tests' / 'shared')]
    script.write_text(f'import sys\nsys.path[:0] = {path!r}\n{body}')
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]


def run_in_two_processes(folder: Path, body: str) -> None:
    """Run a script in two processes that torchrun starts.

    Args:
        folder: As in :func:`two_processes`.
        body: Likewise.
    """
    done = subprocess.run(two_processes(folder, body), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
