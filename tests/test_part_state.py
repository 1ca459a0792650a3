"""Do parts of a model that keep plain Python state go on where a stopped run left them?"""

import copy
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from toy_run import PROJECT, ToyNet, assert_equal, end_of, run_in_two_processes, same_end, saved, toy_config

from dense.engine.launch import load_config, train
from dense.engine.part_state import KEY, PartState
from dense.errors import UserError


class Threshold:
    """No module: what an assigner is in MMDetection."""

    def __init__(self) -> None:
        self.value = 0.5


class Teacher(nn.Module):
    """Hidden from the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)


@MODELS.register_module()
class KeepingNet(ToyNet):
    """Every step's loss depends on what the steps before left in plain attributes of many kinds."""

    def __init__(self, objects: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count, self.label, self.flag, self.size = 0, 'new', False, None
        self.history: list[Any] = []
        self.recent: deque[float] = deque(maxlen=3)
        self.table: dict[Any, Any] = {}
        self.center = torch.zeros(4)
        self.array = np.zeros(2)
        self.assigner = Threshold()
        self.augments = [Threshold(), Threshold()]
        self.rng = random.Random(1)
        self.draws = np.random.default_rng(2)
        self.noise = torch.Generator().manual_seed(3)
        self.register_buffer('passing', torch.ones(2), persistent=False)
        self.__dict__['teacher'] = Teacher()
        self.alias = self.history  # one list under two names
        self.objects = objects
        self.cache: Any = None

    def forward(self, x: list[torch.Tensor], y: list[torch.Tensor], mode: str = 'tensor') -> Any:
        losses = super().forward(x, y, mode)
        if mode != 'loss':
            return losses
        scale = self._scale()
        self._step(torch.stack(x))
        return dict(loss=losses['loss'] * scale)

    def _scale(self) -> float:
        parts = [self.count * 0.01, len(self.label) * 0.01, float(self.flag), sum(self.size or ()) * 0.01]
        parts += [float(np.sum(self.alias)) * 0.01, sum(self.recent) * 0.1, float(sum(self.table.values()))]
        parts += [float(self.center.sum()), float(self.array.sum()), self.assigner.value, self.augments[1].value]
        parts += [self.rng.random(), float(self.draws.random()), float(torch.rand((), generator=self.noise))]
        parts += [float(self.passing.sum()), float(self.teacher.layer.weight.sum())]
        return 1 + 0.1 * sum(parts)

    def _step(self, x: torch.Tensor) -> None:
        self.count += 1
        self.label += '.'
        self.flag = not self.flag
        self.size = (self.count, 2)
        self.history.append(np.float64(x.mean()))
        self.recent.append(float(x[0, 0]))
        self.table[self.count % 3, 'x'] = self.count / 100
        self.center += x.mean(0) / 10  # in place
        self.array = self.array + 0.1
        self.assigner.value *= 0.9
        self.augments[1].value += 0.1
        self.passing = self.passing * 1.01
        with torch.no_grad():
            self.teacher.layer.weight.mul_(0.9).add_(self.layers[0].weight[:1], alpha=0.1)
        if self.objects:
            self.cache = Threshold()


def resumed(cfg: Config, folder: Path, checkpoint: Path) -> None:
    again = copy.deepcopy(cfg)
    again.update(work_dir=str(folder), resume=True, load_from=str(checkpoint))
    train(again)


def test_all_kinds_of_plain_state_go_on(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path / 'whole', steps=9, model=dict(type='KeepingNet'))
    train(cfg)
    for step in (3, 5):
        resumed(cfg, tmp_path / f'from{step}', tmp_path / 'whole' / f'iter_{step}.pth')
        same_end(tmp_path / f'from{step}', tmp_path / 'whole')
    resumed(cfg, tmp_path / 'twice', tmp_path / 'from3' / 'iter_6.pth')
    same_end(tmp_path / 'twice', tmp_path / 'whole')


def test_only_what_changed_is_stored(tmp_path: Path) -> None:
    train(toy_config(tmp_path, steps=2))
    assert KEY not in torch.load(tmp_path / 'iter_2.pth', weights_only=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.LSTM(4, 4), nn.BatchNorm1d(4))
    kept = PartState(net)
    for parameter in net.parameters():
        parameter.data.add_(1)
    net.eval()
    net[1](torch.rand(3, 4))
    assert kept.changes() == ({}, [])


def test_what_cannot_be_stored_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(toy_config(tmp_path, steps=4, model=dict(type='KeepingNet', objects=True)))
    said = [line for line in capfd.readouterr().out.splitlines() if 'cannot be stored' in line]
    assert len(said) == 1 and 'cache changed in training' in said[0]


def test_large_caches_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('dense.engine.part_state.MOST_BYTES', 1000)
    net = nn.Linear(2, 2)
    net.small, net.large = torch.zeros(3), torch.zeros(1000)
    kept = PartState(net)
    net.small, net.large = torch.ones(3), torch.ones(1000)
    state, lost = kept.changes()
    assert list(state['']) == ['small'] and lost == ['large']


HOSTILE: dict[str, Any] = {
    'a method': [{'': {'forward': (3, False)}}],
    'a module': [{'': {'layers': (3, False)}}],
    "torch's own": [{'': {'_modules': ({}, True)}}],
    'no such part': [{'neck': {'count': (3, False)}}],
    'no entry': [{'': {'count': 3}}],
    'a number': 3,
    'names as text': [{'': 'count'}],
    'unknown kind': [{'': {'recent': ({'plain kind': 'code', 'items': []}, False)}}],
    'no items': [{'': {'recent': ({'plain kind': 'deque'}, False)}}],
}


@pytest.mark.parametrize('name', HOSTILE)
def test_state_of_another_model_is_refused(name: str, tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, steps=2, model=dict(type='KeepingNet'))
    train(cfg)
    content = torch.load(tmp_path / 'iter_1.pth', weights_only=True)
    content[KEY] = HOSTILE[name]
    torch.save(content, tmp_path / 'changed.pth')
    with pytest.raises(UserError, match='that this model cannot take'):
        resumed(cfg, tmp_path, tmp_path / 'changed.pth')


def detector(root: Path, work_dir: Path, options: dict[str, Any]) -> Config:
    config = PROJECT / 'configs/mask_rcnn/mask-rcnn_inceptionnext-a_fpn_400i_own-320x320.py'
    cfg = load_config(config, work_dir=work_dir, data_root=root, options=options)
    cfg.model.data_preprocessor.batch_augments = [
        dict(type='BatchSyncRandomResize', random_size_range=(64, 160), size_divisor=32, interval=4)
    ]
    cfg.model.roi_head.type = 'DynamicRoIHead'
    cfg.model.roi_head.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)
    cfg.model.train_cfg.rcnn.dynamic_rcnn = dict(
        iou_topk=3, beta_topk=3, update_iter_interval=3, initial_iou=0.1, initial_beta=1.0
    )
    return cfg


@pytest.mark.slow
def test_sizes_of_batches_and_dynamic_heads(
    tiny_data: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]]
) -> None:
    """At step 5 the size of step 4 is in use, the threshold of step 3, and a history of two steps."""
    options = tiny_options('det', tiny_data, iters=8)
    options |= {'default_hooks.checkpoint.interval': 5, 'train_cfg.val_interval': 100}
    cfg = detector(tiny_data, tmp_path / 'whole', options)
    train(cfg)
    state = torch.load(tmp_path / 'whole' / 'iter_5.pth', weights_only=True)[KEY][0]
    assert 'iou_history' in state['roi_head'] and 'pos_iou_thr' in state['roi_head.bbox_assigner']
    assert any('_input_size' in names for names in state.values())
    resumed(cfg, tmp_path / 'again', tmp_path / 'whole' / 'iter_5.pth')
    same_end(tmp_path / 'again', tmp_path / 'whole')


SEVERAL = """
from pathlib import Path
from toy_run import toy_config
import test_part_state
from dense.engine.launch import train
work_dir = Path({work_dir!r})
for name, more in (('whole', {{}}), ('again', dict(resume=True, load_from=str(work_dir / 'whole' / 'iter_3.pth')))):
    cfg = toy_config(work_dir / name, steps=7, launcher='pytorch', model=dict(type='KeepingNet'), **more)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    train(cfg)
"""


@pytest.mark.slow
def test_each_process_keeps_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = f'sys.path.insert(0, {str(PROJECT / "tests")!r})\n{SEVERAL.format(work_dir=str(tmp_path))}'
    run_in_two_processes(tmp_path, body)
    first, second = torch.load(tmp_path / 'whole' / 'iter_3.pth', weights_only=True)[KEY]
    assert not torch.equal(first['']['center'][0], second['']['center'][0])
    assert_equal(saved(end_of(tmp_path / 'again')), saved(end_of(tmp_path / 'whole')))
    cfg = toy_config(tmp_path / 'one', steps=4, model=dict(type='KeepingNet'))
    cfg.train_dataloader.batch_size *= 2  # the same global batch
    resumed(cfg, tmp_path / 'one', tmp_path / 'whole' / 'iter_3.pth')
    assert 'go on with that of the first' in capfd.readouterr().out
