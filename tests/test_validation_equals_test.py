"""Does each validation during training give exactly the results of testing its checkpoint?"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from toy_run import run_in_two_processes, toy_config

from backbones.fast.winograd import WinogradConv2d
from dense.data.mini import write_mini
from dense.engine.launch import load_config, train
from dense.engine.launch import test as evaluate_checkpoint

CONFIGS = {
    'det': 'configs/mini/mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160.py',
    'seg': 'configs/mini/upernet_inceptionnext-a_450i_mini-128x128.py',
}
RUNS: dict[str, dict[str, Any]] = {
    'as the tools choose': {},
    'EMA': {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]},
    'EMA of buffers': {'custom_hooks': [dict(type='EMAHook', momentum=0.5, update_buffers=True)]},
    'accumulation': {'optim_wrapper.accumulative_counts': 2},
    'AMP': {'optim_wrapper.dtype': 'bfloat16'},  # whatever the processor
    'EMA, AMP, accumulation': {
        'custom_hooks': [dict(type='EMAHook', momentum=0.5)],
        'optim_wrapper.accumulative_counts': 2,
        'optim_wrapper.dtype': 'bfloat16',
    },
}
FAST = [('seg', 'as the tools choose'), ('det', 'EMA')]
VALIDATIONS, INTERVAL = 3, 2
WIDE, SIDE = 256, 320  # wide and large enough for convolutions in tiles by the usual limits
ARCH = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
CHANNELS = list(ARCH['dims'])


@pytest.fixture(scope='module')
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mini(tmp_path_factory.mktemp('mini'), num_train=4, num_val=2).root


def options(task: str, run: str) -> dict[str, Any]:
    return {
        'model.backbone.arch': ARCH,
        'model.backbone.drop_path_rate': 0.0,
        'train_cfg.max_iters': VALIDATIONS * INTERVAL,
        'train_cfg.val_interval': INTERVAL,
        'train_dataloader.batch_size': 2,
        'val_dataloader.batch_size': 1,
        'test_dataloader.batch_size': 1,
        'param_scheduler': None,
        'optim_wrapper.optimizer.lr': 1e-3,
        'default_hooks.checkpoint.interval': INTERVAL,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'default_hooks.checkpoint.save_optimizer': False,
        'default_hooks.logger.interval': 1,
        **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
        **{f'{split}_dataloader.dataset.pipeline.1.scale': (SIDE, SIDE) for split in ('val', 'test')},
        **(detector() if task == 'det' else segmentor()),
        **RUNS[run],
    }


def detector() -> dict[str, Any]:
    return {
        'model.neck.in_channels': CHANNELS,
        'model.neck.out_channels': WIDE,
        'model.rpn_head.in_channels': WIDE,
        'model.rpn_head.feat_channels': WIDE,
        'model.roi_head.bbox_roi_extractor.out_channels': WIDE,
        'model.roi_head.bbox_head.in_channels': WIDE,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        'model.roi_head.mask_roi_extractor.out_channels': WIDE,
        'model.roi_head.mask_head.num_convs': 1,
        'model.roi_head.mask_head.in_channels': WIDE,
        'model.roi_head.mask_head.conv_out_channels': 16,
        'model.train_cfg.rpn_proposal.max_per_img': 20,
        'model.test_cfg.rpn.max_per_img': 20,
        'train_dataloader.dataset.pipeline.2.scale': (96, 96),
        'model.test_cfg.rcnn.score_thr': 0.0,  # little is learned: whatever is found is compared
        'model.test_cfg.rcnn.max_per_img': 10,
    }


def segmentor() -> dict[str, Any]:
    return {
        'model.decode_head.in_channels': CHANNELS,
        'model.decode_head.channels': WIDE,
        'model.auxiliary_head.in_channels': CHANNELS[2],
        'model.auxiliary_head.channels': 16,
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        'model.data_preprocessor.size': (64, 64),
    }


def load(task: str, run: str, data: Path, work_dir: Path) -> Config:
    return load_config(
        CONFIGS[task], work_dir=work_dir, data_root=data, options=options(task, run), amp='AMP' in run, seed=0
    )


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, float], list[torch.Tensor]]]:
    """What each validation or test gave: its metrics, and every tensor that was predicted."""
    seen: list[Any] = []
    predicted: list[torch.Tensor] = []
    process, evaluate = Evaluator.process, Evaluator.evaluate

    def keep(self: Evaluator, data_samples: Any, data_batch: Any = None) -> None:
        for sample in data_samples:
            for name in ('pred_instances', 'pred_sem_seg', 'seg_logits'):
                for _, value in sorted(sample.get(name, {}).items()):
                    predicted.append(torch.as_tensor(getattr(value, 'tensor', value)).clone())
        process(self, data_samples, data_batch)

    def finish(self: Evaluator, size: int) -> dict[str, float]:
        metrics = evaluate(self, size)
        seen.append(({name: float(value) for name, value in metrics.items()}, list(predicted)))
        predicted.clear()
        return metrics

    monkeypatch.setattr(Evaluator, 'process', keep)
    monkeypatch.setattr(Evaluator, 'evaluate', finish)
    return seen


@pytest.fixture
def in_tiles(monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """How often a convolution took tiles, in training mode or not."""
    counts = {True: 0, False: 0}
    is_faster: Callable[..., bool] = WinogradConv2d.is_faster

    def count(self: WinogradConv2d, x: torch.Tensor) -> bool:
        faster = is_faster(self, x)
        counts[self.training] += faster
        return faster

    monkeypatch.setattr(WinogradConv2d, 'is_faster', count)
    return counts


def cases() -> list[Any]:
    pairs = [(task, run) for run in RUNS for task in CONFIGS]
    # Mixed precision takes minutes on a CPU without BF16 instructions.
    slow = [pytest.mark.slow, pytest.mark.timeout(1200)]
    return [pytest.param(*pair, marks=[] if pair in FAST else slow) for pair in pairs]


@pytest.mark.parametrize(('task', 'run'), cases())
def test_validation_gives_what_the_test_gives(
    task: str, run: str, mini_data: Path, tmp_path: Path, results: list, in_tiles: dict[bool, int]
) -> None:
    train(load(task, run, mini_data, tmp_path / 'train'))
    validations = list(results)
    assert len(validations) == VALIDATIONS
    assert in_tiles[False] >= VALIDATIONS * 2, 'no convolution of the validations took tiles'
    for (_, one), (_, other) in itertools.pairwise(validations):
        assert not all(map(torch.equal, one, other)), 'equal validations would prove nothing'
    for i, (metrics, predicted) in enumerate(validations, 1):
        checkpoint = tmp_path / 'train' / f'iter_{i * INTERVAL}.pth'
        given = evaluate_checkpoint(load(task, run, mini_data, tmp_path / 'test'), checkpoint)
        _, tested = results[-1]
        assert given == metrics, f'validation {i}'
        assert len(predicted) == len(tested) >= 2
        assert all(map(torch.equal, predicted, tested)), f'validation {i}'


SEVERAL = """
import json
from pathlib import Path
from toy_run import toy_config
from dense.engine.launch import train
runner = train(toy_config(Path({work_dir!r}), launcher='pytorch', **{changes!r}))
if runner.rank == 0:
    scores = runner.message_hub.get_scalar('val/score').data[0].tolist()
    Path({work_dir!r}, 'scores.json').write_text(json.dumps(scores))
"""


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]}], ids=['plain', 'EMA'])
def test_several_processes_validate_the_model_that_they_save(changes: dict[str, Any], tmp_path: Path) -> None:
    """Each process has batch statistics of its own images; a checkpoint holds those of the main process."""
    # One image at a time: in another batch, a product of matrices may round otherwise.
    changes = {**changes, 'val_dataloader': {'batch_size': 1}, 'test_dataloader': {'batch_size': 1}}
    run_in_two_processes(tmp_path, SEVERAL.format(work_dir=str(tmp_path), changes=changes))
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert len(set(scores)) == 3
    for step, score in zip((4, 8, 12), scores, strict=True):
        tested = evaluate_checkpoint(toy_config(tmp_path / 'test', **changes), tmp_path / f'iter_{step}.pth')
        assert tested['score'] == score
