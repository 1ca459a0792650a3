"""Is the user told when training waits for its data, once, with the right figures, and never otherwise?"""

from types import SimpleNamespace

import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

from dense.data.run_inputs import RunInputs
from dense.engine import data_wait_hook
from dense.engine.data_wait_hook import DataWaitHook, advise_num_workers
from dense.engine.launch import load_config, train
from dense.engine.run_defaults import add_run_defaults


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(data_wait_hook, 'time', clock)
    monkeypatch.setattr(data_wait_hook, 'usable_cores', lambda: 16)
    return clock


def notices(hook, clock, waits, *, step=1.0, between=None, num_workers=4, capsys):
    """Run a loop that waits ``waits[i]`` seconds for the data of step i; what stands on the screen afterwards."""
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(num_workers=num_workers))
    hook.before_train(runner)
    for i, wait in enumerate(waits):
        clock.now += wait
        hook.before_train_iter(runner, i)
        clock.now += step
        hook.after_train_iter(runner, i)
        if between is not None:
            between(hook, runner, i)
    return capsys.readouterr().out.splitlines()


def test_a_starving_run_is_told_once(clock, capsys):
    lines = notices(DataWaitHook(), clock, [0.5] * 300, capsys=capsys)
    assert lines == [
        'loading data takes 33% of a step (0.50 of 1.50 s) with num_workers=4: '
        'start with --cfg-options train_dataloader.num_workers=8'
    ]


# What happens: seconds of waiting before each of 200 steps of 1 s, and whether that is data_wait_hook.
WAITS = {
    'fast loader': ([0.01] * 200, False),
    'just below the limit': ([0.24] * 200, False),
    'just above the limit': ([0.26] * 200, True),
    'slow start only': ([5.0] * 50 + [0.1] * 150, False),
    'becomes slow later': ([0.0] * 120 + [2.0] * 80, True),
    # Four processes that are too slow together deliver four batches at once.
    'bursts': ([2.0, 0.0, 0.0, 0.0] * 50, True),
    'one slow batch': ([0.0] * 70 + [10.0] + [0.0] * 129, False),
    'too short to say': ([5.0] * 99, False),
}


@pytest.mark.parametrize('name', WAITS)
def test_what_counts_as_starving(name, clock, capsys):
    waits, is_starving = WAITS[name]
    assert len(notices(DataWaitHook(), clock, waits, capsys=capsys)) == is_starving


def validate(hook, clock):
    def between(_, runner, step):
        if step % 10 == 9:
            clock.now += 60
            hook.after_val(runner)

    return between


def end_epoch(hook, clock):
    def between(_, runner, step):
        if step % 10 == 9:
            clock.now += 60  # a checkpoint, and validation
            hook.before_train_epoch(runner)

    return between


@pytest.mark.parametrize('what', [validate, end_epoch])
def test_other_pauses_are_no_waiting_for_data(what, clock, capsys):
    hook = DataWaitHook()
    assert notices(hook, clock, [0.1] * 200, between=what(hook, clock), capsys=capsys) == []


# Processes, cores -> what is asked for.
REMEDIES = [
    (0, 8, 'start with --cfg-options train_dataloader.num_workers=2'),
    (2, 8, 'start with --cfg-options train_dataloader.num_workers=4'),
    (6, 8, 'start with --cfg-options train_dataloader.num_workers=8'),
    (8, 8, 'this machine has 8 cores, so put the data on a faster disk'),
    (0, 1, 'start with --cfg-options train_dataloader.num_workers=1'),
    (1, 1, 'num_workers=2'),
]


@pytest.mark.parametrize(('num_workers', 'cores', 'expected'), REMEDIES)
def test_remedy(num_workers, cores, expected):
    assert expected in advise_num_workers(num_workers, cores)


def test_every_training_run_has_the_hook():
    loader = dict(batch_size=1, dataset=dict(type='Any'))
    cfg = Config(dict(randomness=dict(seed=0), train_dataloader=loader, model=dict(type='Any')))
    add_run_defaults(cfg, RunInputs.read(cfg))
    (hook,) = [hook for hook in cfg.custom_hooks if hook['type'] == 'DataWaitHook']
    assert hook == dict(type='DataWaitHook')


@TRANSFORMS.register_module()
class Loading(BaseTransform):
    """A step of a pipeline that takes a time, by the clock of the test."""

    def __init__(self, seconds):
        self.seconds = seconds

    def transform(self, results):
        data_wait_hook.time.now += self.seconds
        return results


@HOOKS.register_module()
class Working(Hook):
    """A training step that takes a second, by the clock of the test."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        data_wait_hook.time.now += 1


@pytest.mark.parametrize(('seconds', 'is_slow'), [(0.1, False), (0.15, True)])
def test_real_run(seconds, is_slow, clock, tiny_data, tiny_options, tiny_config_files, tmp_path, capsys):
    """Two images are 0.2 of 1.2 s, which is less than a fifth, or 0.3 of 1.3 s."""
    options = tiny_options('seg', tiny_data, iters=6)
    options.update({'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None})
    options['custom_hooks'] = [dict(type='DataWaitHook', warm_up=2, window=2), dict(type='Working')]
    cfg = load_config(
        tiny_config_files['seg'], work_dir=tmp_path, data_root=tiny_data,
        options={key: value for key, value in options.items() if not key.startswith('val_dataloader.')},
    )  # fmt: skip
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='mmengine.Loading', seconds=seconds))
    train(cfg)
    lines = [line for line in capsys.readouterr().out.splitlines() if 'loading data takes' in line]
    assert len(lines) == is_slow
    assert all('with num_workers=0: start with --cfg-options train_dataloader.num_workers=' in line for line in lines)
