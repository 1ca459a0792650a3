"""Do the hooks and the checkpoint files keep what they promise?"""

import io
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import HistoryBuffer
from rich.console import Console
from toy_run import toy_config

from dense.console import output as screen
from dense.console.progress import ProgressBarHook, clock, summary
from dense.data.seeded import SeededBatchSampler, SeededDataset
from dense.engine.atomic import AtomicBackend
from dense.engine.checkpoint import from_plain, to_plain
from dense.engine.finite import FiniteLossHook
from dense.engine.launch import train
from dense.engine.options import apply_options, check_options, parse_options
from dense.engine.resume import latest_checkpoint
from dense.errors import UserError, did_you_mean
from dense.randomness import own_randomness, seed_generators

pytestmark = pytest.mark.smoke


def draw_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_step_seed_decides_every_generator() -> None:
    seen = set()
    for entropy in ((0, 1), (0, 2), (1, 1)):
        seed_generators(entropy)
        first = draw_all()
        seed_generators(entropy)
        assert draw_all() == first
        seen.add(first)
    assert len(seen) == 3


def test_sample_seed_leaves_the_generators_outside_alone() -> None:
    seed_generators((0, 0))
    expected = draw_all(), draw_all()
    seed_generators((0, 0))
    before = draw_all()
    with own_randomness((5, 5)):
        inside = draw_all()
    assert (before, draw_all()) == expected
    with own_randomness((5, 5)):
        assert draw_all() == inside


class Numbers:
    """A data set whose samples are their index and what the generators give."""

    def __init__(self) -> None:
        self.metainfo = dict(classes=('a',))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, tuple[float, float, float]]:
        return index, draw_all()


def batches(kind: str, count: int, **start: int) -> list[list[Any]]:
    dataset = Numbers()
    sampler = InfiniteSampler(dataset, seed=3) if kind == 'endless' else DefaultSampler(dataset, seed=3, shuffle=True)
    loader = SeededBatchSampler(sampler, batch_size=4, drop_last=kind == 'full batches', **start)
    found: list[list[Any]] = []
    while len(found) < count:
        for batch in loader:
            found.append(list(batch))
            if len(found) == count:
                break
    return found


# 10 samples: 3 batches an epoch, or 2 full ones.
SAMPLER_CASES = [
    ('endless', 8, dict(start_iter=5)),
    ('epochs', 9, dict(start_iter=3, start_epoch=1)),
    ('epochs', 9, dict(start_iter=4, start_epoch=1)),
    ('epochs', 9, dict(start_iter=7)),  # a run that counts steps passes over two whole epochs
    ('full batches', 6, dict(start_iter=2, start_epoch=1)),
]


@pytest.mark.parametrize(('kind', 'count', 'start'), SAMPLER_CASES)
def test_batches_go_on_where_the_run_stopped(kind: str, count: int, start: dict[str, int]) -> None:
    whole = batches(kind, count)
    rest = batches(kind, count - start['start_iter'], **start)
    assert rest == whole[start['start_iter'] :]
    numbers = [draw.number for batch in whole for draw in batch]
    assert len(set(numbers)) == len(numbers), 'two samples would get the same augmentation'


def test_seeded_dataset_repeats_a_draw_and_passes_on_the_rest() -> None:
    dataset = SeededDataset(Numbers(), seed=1)
    (first, second, *_), *_ = batches('endless', 1)
    assert dataset[first] == dataset[first]
    assert dataset[first][1] != dataset[second][1]
    assert dataset.metainfo == dict(classes=('a',)) and len(dataset) == 10
    with pytest.raises(AttributeError):
        _ = dataset.nothing


LOSSES = [
    (dict(loss=torch.tensor(1.0), loss_cls=torch.tensor(0.5), acc=torch.tensor(float('nan'))), True),
    (dict(loss=torch.tensor(float('nan')), loss_cls=torch.tensor(0.5)), False),
    (dict(loss=torch.tensor(1.0), loss_mask=torch.tensor(float('inf'))), False),
    ({}, True),
]


@pytest.mark.parametrize(('losses', 'is_fine'), LOSSES)
def test_finite_loss_hook(losses: dict[str, torch.Tensor], is_fine: bool) -> None:
    hub = SimpleNamespace(runtime_info={'last_ckpt': 'work/iter_4.pth'})
    runner = SimpleNamespace(iter=4, message_hub=hub)
    batch = dict(data_samples=[SimpleNamespace(img_path='data/7.jpg')])
    if is_fine:
        FiniteLossHook().after_train_iter(runner, 0, batch, losses)
        return
    with pytest.raises(UserError, match=r'step 5 is not finite.*(nan|inf).*7\.jpg') as caught:
        FiniteLossHook().after_train_iter(runner, 0, batch, losses)
    assert 'iter_4.pth' in caught.value.remedy


def test_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, path = AtomicBackend(), tmp_path / 'run' / 'iter_1.pth'
    backend.put(b'old', path)

    def fail(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fail)
        with pytest.raises(OSError, match='No space'):
            backend.put(b'new', path)
    assert path.read_bytes() == b'old' and [p.name for p in path.parent.iterdir()] == ['iter_1.pth']
    backend.put(b'new', path)
    assert path.read_bytes() == b'new' and len(list(path.parent.iterdir())) == 1


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path: Path) -> None:
    backend = AtomicBackend()
    old, new = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth'
    backend.put(b'1', old)
    backend.remove(old)
    assert old.exists()
    AtomicBackend(backend.waiting).put(b'2', new)  # MMEngine makes a backend for every write
    assert not old.exists() and new.exists()
    backend.remove(new)
    backend.put(b'3', new)
    assert new.read_bytes() == b'3'


def test_history_survives_as_plain_data() -> None:
    history = HistoryBuffer([1.0, 2.0, 4.0], [1, 1, 2])
    state = dict(log_scalars=dict(loss=history), runtime_info=dict(best=np.float64(0.5), names=('a', np.int64(3))))
    file = io.BytesIO()
    torch.save(to_plain(state), file)
    file.seek(0)
    read = from_plain(torch.load(file, weights_only=True))
    assert read['runtime_info'] == dict(best=0.5, names=('a', 3))
    for got, expected in zip(read['log_scalars']['loss'].data, history.data, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert read['log_scalars']['loss'].mean(2) == history.mean(2)


class Size(NamedTuple):
    height: int
    width: Any


def test_named_tuples_become_plain() -> None:
    file = io.BytesIO()
    torch.save(to_plain(dict(size=Size(3, np.int64(4)))), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == dict(size=(3, 4))


LATEST = [
    ({'iter_9.pth': 1, 'iter_10.pth': 2}, 'iter_10.pth', 'iter_10.pth'),
    ({'iter_9.pth': 1, 'iter_10.pth': 2}, '/moved/away/iter_9.pth', 'iter_10.pth'),  # killed before it said so
    ({'epoch_1.pth': 2, 'epoch_2.pth': 3}, '', 'epoch_2.pth'),
    ({'epoch_1.pth': 2}, 'epoch_2.pth', 'epoch_1.pth'),
    ({'best_mIoU_iter_8.pth': 3}, None, None),
    ({'iter_9.pth': 1, 'iter_10.pth': 1}, None, 'iter_10.pth'),  # copied: all of the same age
    ({'iter_9.pth': 1}, '.', 'iter_9.pth'),
    ({'iter_9.pth': 1}, '\0', 'iter_9.pth'),
    ({'iter_9.pth': 1}, 'x' * 5000, 'iter_9.pth'),
    ({'iter_9.pth': 1}, b'\xff\xfe', 'iter_9.pth'),
]


@pytest.mark.parametrize(('files', 'pointer', 'expected'), LATEST)
def test_latest_checkpoint(
    tmp_path: Path, files: dict[str, int], pointer: str | bytes | None, expected: str | None
) -> None:
    for name, age in files.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_bytes(pointer if isinstance(pointer, bytes) else pointer.encode())
    found = latest_checkpoint(tmp_path)
    assert (None if found is None else found.name) == expected


def test_a_copied_run_goes_on_from_its_own_files(tmp_path: Path) -> None:
    first, second = tmp_path / 'first', tmp_path / 'second'
    for folder in (first, second):
        folder.mkdir()
        (folder / 'iter_2.pth').touch()
        (folder / 'last_checkpoint').write_text(str(first / 'iter_2.pth'))
    assert latest_checkpoint(second) == second / 'iter_2.pth'
    (second / 'iter_2.pth').unlink()  # or kept in another folder from the beginning (out_dir)
    assert latest_checkpoint(second) == first / 'iter_2.pth'


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = toy_config(tmp_path, steps=3)
    train(cfg)
    expected = (tmp_path / 'iter_3.pth').read_bytes()
    (tmp_path / 'iter_3.pth').write_bytes(expected[: len(expected) // 2])
    cfg.resume = True
    capfd.readouterr()
    assert train(cfg).iter == 3
    shown = capfd.readouterr().out
    newest, before = tmp_path / 'iter_3.pth', tmp_path / 'iter_2.pth'
    assert f'WARNING: Checkpoint {str(newest)!r} is damaged' in shown
    assert f'continuing from the earlier {before} instead of {newest}' in shown
    assert f'continuing {tmp_path / "iter_2.pth"} after 2 steps' in shown
    for path in tmp_path.glob('iter_*.pth'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match='none of the 3 checkpoints') as caught:
        train(cfg)
    assert len(str(caught.value).splitlines()) == 2


class FakeRunner:
    def __init__(self, steps: int) -> None:
        self.max_iters, self.iter = steps, 0
        self.val_dataloader = range(2)


def run_with_bar(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen._screen, 'console', console)
    monkeypatch.setattr(screen._screen, 'stream', console.file)
    hook, runner = ProgressBarHook(line_interval=1000), FakeRunner(3)
    hook.before_train(runner)
    for _ in range(3):
        hook.after_train_iter(runner, 0, None, dict(loss=torch.tensor(2.0, requires_grad=True)))
        runner.iter += 1
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0)
    hook.after_val_iter(runner, 1)
    hook.after_val_epoch(runner, {'mIoU': np.float32(0.25)})
    hook.after_train(runner)


def test_progress_without_terminal_is_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    run_with_bar(Console(file=file, force_terminal=False, width=80), monkeypatch)
    lines = file.getvalue().splitlines()
    assert [re.sub(r'\d+:\d\d', 'TIME', line) for line in lines] == [
        'train 1/3  TIME left  loss 2',
        'train 3/3  TIME left  loss 2',
        'validate 1/2  TIME left',
        'validate 2/2  TIME left',
        'after 3 steps: mIoU 0.25',
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    run_with_bar(Console(file=file, force_terminal=True, width=80), monkeypatch)
    text = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', file.getvalue())
    assert '3/3' in text and 'left' in text and 'loss 2' in text and 'after 3 steps: mIoU 0.25' in text
    assert 'train 1/3 ' not in text, 'lines belong where there is no bar'


def test_words_for_people() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3725)] == ['0:00', '1:00', '1:01', '1:02:05']
    assert summary({'coco/bbox_mAP_50': 0.5, 'coco/bbox_mAP_s': -1.0, 'name': 'x'}) == 'coco/bbox_mAP_50 0.5'
    assert did_you_mean('tinny', ['atto', 'tiny']) == "did you mean 'tiny'? allowed: atto, tiny"


VALUES = [
    ('a=1', 1),
    ('a=1e-3', 1e-3),
    ('a=true', True),
    ('a=None', None),
    ('a=[1, 2]', [1, 2]),
    ('a=1,2', [1, 2]),
    ('a=(1, 2)', (1, 2)),
    ("a={'b': 1}", {'b': 1}),
    ('a=data/coco', 'data/coco'),
    ('a=x=y', 'x=y'),
    ('a=', ''),
]


@pytest.mark.parametrize(('text', 'value'), VALUES)
def test_option_values(text: str, value: Any) -> None:
    (got,) = parse_options([text]).values()
    assert got == value and type(got) is type(value)


ODD_OPTIONS = [
    ['model=x', 'model.a=1'],
    ['model={}', 'model.layers.0=1'],
    ['model.layers.\u00b2=1'],
    ['model.layers.' + '9' * 5000 + '=1'],
    ['model.pair.0=1'],
    ['mo\x0c\x00del=1'],
]


@pytest.mark.parametrize('pairs', ODD_OPTIONS, ids=lambda pairs: ascii(pairs)[:30])
def test_options_that_have_no_place_are_errors_of_two_lines(pairs: list[str]) -> None:
    cfg = Config(dict(model=dict(type='Net', layers=[1, 2], pair=(1, 2))))
    options = parse_options(pairs)
    with pytest.raises(UserError) as caught:
        check_options(cfg, options)
        apply_options(cfg, options)
    assert len(str(caught.value).splitlines()) == 2
