"""Do processes that were given different configs, code or data refuse to train together, and say what differs?"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from toy_run import run_in_two_processes, toy_config

from dense.distributed import agreement
from dense.distributed.agreement import check_agreement, code_facts, config_facts, data_facts
from dense.engine.runner import DenseRunner
from dense.errors import UserError


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function (facts of every process) -> error of a process, or nothing."""

    def check(kind: str, *everyone: dict[str, str]) -> UserError | None:
        answers = iter([[{kind: agreement._hash(facts)} for facts in everyone], list(everyone)])
        monkeypatch.setattr(agreement, 'get_world_size', lambda: len(everyone))
        monkeypatch.setattr(agreement, '_gathered', lambda own: next(answers))
        try:
            check_agreement({kind: everyone[0]})
        except UserError as error:
            return error
        return None

    return check


def test_equal_processes_agree(gathering: Any) -> None:
    assert gathering('config', dict(a='1', b='2'), dict(b='2', a='1')) is None


@pytest.mark.parametrize(
    'others, named',
    [
        ([{'a': '1'}, {'a': '3'}], 'rank 2 differs from rank 0 in the config: a is 3 and not 1'),
        ([{'a': '3'}, {'a': '4'}], 'ranks 1, 2 differ from rank 0 in the config: a is 3 and not 1'),
        (
            [{'a': '1'}, {'b': '1'}],
            'rank 2 differs from rank 0 in the config: a is absent and not 1, b is 1 and not absent',
        ),
        ([{'a': '3'}] * 5, 'ranks 1, 2, 3 and 2 more differ'),
        ([{f'k{i}': '1' for i in range(9)}], ' and 7 more'),
    ],
)
def test_those_who_differ_are_named(others: list[dict[str, str]], named: str, gathering: Any) -> None:
    error = gathering('config', {'a': '1'}, *others)
    assert error is not None and named in error.cause


def test_a_config_may_lie_elsewhere(tmp_path: Path) -> None:
    def config(root: str, **changes: Any) -> Config:
        cfg = toy_config(tmp_path / root, **changes)
        cfg.train_dataloader.dataset.update(data_root=root, ann_file=f'{root}/list.json')
        cfg.hook = object()
        return cfg

    assert config_facts(config('/a/b')) == config_facts(config('/c'))
    assert config_facts(config('/a/b')) != config_facts(config('/a/b', randomness=dict(seed=4)))


def test_code_is_compared_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config(dict(custom_imports=dict(imports=['toy_run', 'dense'])))
    facts = code_facts(cfg)
    assert {'python', 'torch', 'toy_run', 'dense/engine/launch.py', 'backbones/base.py'} <= set(facts)
    import toy_run

    changed = Path(shutil.copy(toy_run.__file__, tmp_path))
    changed.write_text(changed.read_text() + '\n')
    monkeypatch.setattr(toy_run, '__file__', str(changed))
    assert {name for name, value in code_facts(cfg).items() if facts[name] != value} == {'toy_run'}


def test_data_is_compared_by_number_names_and_classes(tmp_path: Path) -> None:
    loader = DenseRunner.build_dataloader(toy_config(tmp_path).val_dataloader)
    facts = data_facts('val', loader)
    assert facts['val number of samples'] == '10' and facts['val steps per epoch'] == '2'
    assert facts['val batch size'] == '5'
    info: dict[str, Any] = dict(img_path='/here/1.jpg', instances=[1, 2])
    changes = [dict(img_path='/here/2.jpg'), dict(instances=[1])]
    loader.dataset.get_data_info = lambda index: info
    named = data_facts('val', loader)
    loader.dataset.get_data_info = lambda index: info | dict(img_path='/there/1.jpg')
    assert data_facts('val', loader) == named != facts, 'the folder may be another'
    for change in changes:
        loader.dataset.get_data_info = lambda index, change=change: info | change
        assert data_facts('val', loader) != named
    loader.dataset.metainfo = dict(classes=('a', 'b'))
    assert data_facts('val', loader)['val classes'] == 'a, b'


# What rank 1 has differently -> what both are told.
DIFFERENCES = {
    'config': (
        'cfg.optim_wrapper.optimizer.lr = 0.1',
        'rank 1 differs from rank 0 in the config: optim_wrapper.optimizer.lr is 0.1 and not 0.05',
    ),
    'batch size': ('cfg.train_dataloader.batch_size = 4', 'train_dataloader.batch_size is 4 and not 2'),
    'data': (
        'toy_run.NUM_SAMPLES = 8',
        'rank 1 differs from rank 0 in the data: train number of samples is 8 and not 10',
    ),
    'code': ('toy_run.__file__ = __file__', 'rank 1 differs from rank 0 in the code: toy_run is'),
}
DIFFERENT = """
import os, time
from pathlib import Path
import toy_run
from dense.engine.launch import train
from dense.errors import UserError
begun = time.monotonic()
for name, (change, cause) in {differences!r}.items():
    cfg = toy_run.toy_config(Path({folder!r}) / name, launcher='pytorch',
                             custom_imports=dict(imports=['toy_run']))
    number, file = toy_run.NUM_SAMPLES, toy_run.__file__
    if os.environ['RANK'] == '1':
        exec(change)
    try:
        train(cfg)
    except UserError as error:
        assert cause in error.cause, error
    else:
        raise AssertionError(name)
    toy_run.NUM_SAMPLES, toy_run.__file__ = number, file
    assert not list(Path(cfg.work_dir).glob('*.pth'))
assert time.monotonic() - begun < 60
train(toy_run.toy_config(Path({folder!r}) / 'same', launcher='pytorch'))
"""


@pytest.mark.slow
def test_two_processes_that_differ_do_not_train(tmp_path: Path) -> None:
    run_in_two_processes(tmp_path, DIFFERENT.format(differences=DIFFERENCES, folder=str(tmp_path)))
    assert (tmp_path / 'same' / 'iter_12.pth').is_file()
