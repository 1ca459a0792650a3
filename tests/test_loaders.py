"""Do all combinations of loader settings work, and do data sets survive being copied?"""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from toy_run import ToyNumbers, toy_config

from dense.data.loading import CheckedDataset
from dense.data.seeded import Draw, SeededDataset
from dense.engine.launch import load_config, train
from dense.engine.options import apply_options, check_options
from dense.engine.runner import DenseRunner
from dense.errors import UserError

LEAF = 'configs/upernet/upernet_inceptionnext-a_400i_own-256x256.py'
PROCESSES = dict(num_workers=2, persistent_workers=True, prefetch_factor=3)
GOOD: dict[str, tuple[dict[str, Any], tuple[int, bool, int | None]]] = {
    'as configs have it': ({}, (2, True, 3)),
    'no processes': ({'train_dataloader.num_workers': 0}, (0, False, None)),
    'no processes, but more ahead': (
        {'train_dataloader.num_workers': 0, 'train_dataloader.prefetch_factor': 4},
        (0, False, None),
    ),
    'more ahead': ({'train_dataloader.prefetch_factor': 4}, (2, True, 4)),
    'patience': ({'train_dataloader.num_workers': 0, 'train_dataloader.timeout': 9}, (0, False, None)),
}


def config(work_dir: Path, options: dict[str, Any]) -> Config:
    cfg = toy_config(work_dir, steps=1, train_dataloader=PROCESSES)
    check_options(cfg, options)
    apply_options(cfg, options)
    return cfg


@pytest.mark.parametrize('name', GOOD)
def test_settings_that_only_processes_need(name: str, tmp_path: Path) -> None:
    options, expected = GOOD[name]
    cfg = config(tmp_path, options)
    before = copy.deepcopy(cfg.train_dataloader)
    loader = DenseRunner.build_dataloader(cfg.train_dataloader)
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == expected
    assert cfg.train_dataloader == before


def test_what_is_left_out_is_logged(tmp_path: Path) -> None:
    train(config(tmp_path, {'train_dataloader.num_workers': 0}))
    (log,) = tmp_path.glob('*/*.log')
    assert 'persistent_workers=True, prefetch_factor=3 left out' in log.read_text()


@pytest.mark.parametrize('key', ['prefetch_factor', 'pin_memory', 'drop_last', 'timeout', 'persistent_workers'])
def test_every_argument_of_a_loader_is_understood(key: str) -> None:
    assert load_config(LEAF, options={f'train_dataloader.{key}': 1}).train_dataloader[key] == 1


def test_a_misspelt_argument_of_a_loader_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='prefetch_facter') as caught:
        load_config(LEAF, options={'train_dataloader.prefetch_facter': 4})
    assert "did you mean 'prefetch_factor'" in caught.value.remedy


class WithOwnCopy(ToyNumbers):
    """A data set that says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> 'WithOwnCopy':
        return WithOwnCopy(self.noise)


@pytest.mark.parametrize('inner', [ToyNumbers, WithOwnCopy])
def test_a_wrapped_data_set_can_be_copied(inner: type[ToyNumbers]) -> None:
    dataset = SeededDataset(CheckedDataset(inner(), num_classes=3, test_mode=False), seed=5)
    twin = copy.deepcopy(dataset)
    assert type(twin) is SeededDataset and type(twin.dataset) is CheckedDataset
    assert twin.dataset.dataset is not dataset.dataset.dataset
    assert (twin.seed, twin.num_classes, twin.test_mode) == (5, 3, False)
    assert bool((twin[Draw(2, 7)]['x'] == dataset[Draw(2, 7)]['x']).all())
    twin.dataset._reports.put('a.jpg')
    assert dataset.take_reports() == [] and twin.take_reports() == ['a.jpg']


def test_a_seeded_data_set_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(SeededDataset(ToyNumbers(), seed=4))).seed == 4
