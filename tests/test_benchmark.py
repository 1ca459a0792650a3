"""Does the benchmark count, time and compare as its protocol says?"""

import json
import runpy
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from leaves import BY_NAME
from torch import nn

from dense.benchmark import case as benchmark_case
from dense.benchmark import run as bench
from dense.benchmark.case import Measurement, Protocol, fit_batch
from dense.benchmark.dummy_targets import random_boxes, random_regions
from dense.benchmark.hardware import available_memory, gemm_rate, page_faults, peak_growth
from dense.benchmark.models import Subject
from dense.benchmark.report import as_json, as_markdown, as_text, check_out, write
from dense.benchmark.run import Result, benchmark
from dense.errors import UserError

CPU = torch.device('cpu')
PROJECT = Path(__file__).resolve().parent.parent
MASK_RCNN = BY_NAME['mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160']
UPERNET = BY_NAME['upernet_inceptionnext-a_450i_mini-128x128']
CLASSIFIER = BY_NAME['classifier_inceptionnext-a_30e_own-64x64']
MIB = 2**20


class FakeClock:
    """Time that passes only where a step says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def fakes(monkeypatch):
    """A clock, the order of the steps, and a builder of models whose steps take as long as their names say."""
    clock, order = FakeClock(), []
    monkeypatch.setattr(bench, 'gemm_rate', lambda device: 1e9)

    def build(name, *, train, device, shape):
        def run(model, images):
            last = images.is_contiguous(memory_format=torch.channels_last)
            order.append((name, 'last' if last else 'first', len(images)))
            # 'a:3' takes 3 seconds an image; channels last are twice as fast.
            clock.now += float(name.split(':')[1]) * len(images) / (2 if last else 1)

        return Subject(name, nn.Conv2d(3, 1, 1), shape or (3, 4, 4), run, lambda model, images: model(images).sum())

    return clock, order, build


def test_models_take_turns_and_the_better_layout_counts(fakes):
    clock, order, build = fakes
    protocol = Protocol(warmup=3, iters=4, repeats=2, batch=2, device='cpu')
    result = benchmark(['a:3'], protocol, baseline='b:12', build=build, clock=clock)
    timed_and_warm = 4 * 4 * 2 + 4 * 3 + 4 * 2  # of 2 models in 2 layouts, after the steps that try the batch
    steps = [(name, layout) for name, layout, _ in order][-timed_and_warm:]
    turns = [steps[0]] + [after for before, after in pairwise(steps) if after != before]
    one_round = [('a:3', 'first'), ('a:3', 'last'), ('b:12', 'first'), ('b:12', 'last')]
    assert turns == one_round * 2
    assert [len(turn) for m in result.measurements for turn in m.turns] == [4] * 8
    assert [(m.name, m.layout, m.seconds, m.rate) for m in result.best()] == [
        ('a:3', 'last', 3.0, pytest.approx(2 / 3)),
        ('b:12', 'last', 12.0, pytest.approx(2 / 12)),
    ]
    assert result.best()[0].ratio(result.baseline_measurement()) == pytest.approx(4)
    assert result.baseline_measurement().ratio(result.baseline_measurement()) == 1


def measurement(turns, batch=1, **changes):
    made = Measurement('m', 'first', batch, (3, 4, 4), False, flops=2e9, turns=turns, faults=[0.0], peak_growth=[0])
    return replace(made, **changes)


def test_ratio_compares_turn_by_turn():
    """A machine that becomes ten times slower in the middle changes no ratio; medians forget a single slow step."""
    fast = measurement([[1, 1, 50], [10, 10, 10], [1, 1, 1]])
    slow = measurement([[2, 2, 2], [20, 20, 999], [2, 2, 2]])
    assert fast.ratio(slow) == 2 and slow.ratio(fast) == 0.5
    assert measurement([[4.0]], batch=8).ratio(measurement([[1.0]])) == 2
    assert measurement([[1.0, 2.0, 9.0]], batch=8).rate == 4
    assert measurement([[0.5]], batch=3).flop_rate == 2e9 * 6


@pytest.mark.parametrize(
    ('asked', 'expected'),
    [
        (Protocol(device='cpu'), (10, 40, None)),
        (Protocol(mode='latency', device='cpu', batch=64), (10, 200, 1)),
        (Protocol(mode='latency', device='cpu', warmup=0, iters=3, threads=2), (0, 3, 1)),
    ],
)
def test_what_the_papers_took_is_the_default(asked, expected):
    completed = bench._completed(asked)
    assert (completed.warmup, completed.iters, completed.batch) == expected
    if asked.mode == 'latency':
        assert completed.threads == (asked.threads or 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason='asks for a GPU that is not there')
def test_no_gpu_is_an_error():
    with pytest.raises(UserError, match='no GPU'):
        benchmark(['InceptionNeXt:atto'], Protocol(device='cuda'))


def out_of_memory_above(largest, tried):
    def attempt(batch):
        tried.append(batch)
        if batch > largest:
            raise torch.OutOfMemoryError('CUDA out of memory')

    return attempt


@pytest.mark.parametrize(('largest', 'expected'), [(128, 128), (100, 64), (1, 1)])
def test_batch_is_halved_until_it_fits(largest, expected):
    tried = []
    assert fit_batch(out_of_memory_above(largest, tried), 128, device=CPU) == expected
    assert tried == [2**k for k in range(7, -1, -1) if 2**k >= expected]


def test_nothing_fits():
    with pytest.raises(UserError, match='not even a batch of 2'):
        fit_batch(out_of_memory_above(1, []), 16, device=CPU, smallest=2)


def test_other_errors_are_not_taken_for_short_memory():
    def attempt(batch):
        raise RuntimeError('shapes do not fit')

    with pytest.raises(RuntimeError, match='shapes'):
        fit_batch(attempt, 8, device=CPU)


def test_on_a_cpu_the_need_is_estimated_before_anything_large_is_tried():
    tried = []

    def attempt(batch):
        tried.append(batch)
        np.ones(batch * 20 * MIB // 8)  # 20 MiB an image

    # 70 % of 1000 MiB hold 35 images.
    assert fit_batch(attempt, 128, device=CPU, limit=1000 * MIB) == 32
    assert max(tried) == 32


def test_a_reduced_batch_is_said(fakes, monkeypatch):
    clock, _, build = fakes

    def with_little_memory(name, **options):
        subject = build(name, **options)
        run = subject.run

        def bounded(model, images):
            if len(images) > 40:
                raise torch.OutOfMemoryError('out of memory')
            run(model, images)

        return replace(subject, run=bounded)

    monkeypatch.setattr(benchmark_case, 'available_memory', lambda: None)
    protocol = Protocol(warmup=0, iters=1, repeats=1, device='cpu')
    result = benchmark(['a:1'], protocol, build=with_little_memory, clock=clock)
    assert [m.batch for m in result.measurements] == [32, 32]
    assert result.notes == ['a:1: batch 128 does not fit into memory, reduced to 32']
    assert result.notes[0] in as_text(result)


@pytest.mark.slow
def test_models_in_processes_of_their_own():
    names = ['InceptionNeXt:atto+fused', 'timm:resnet10t']
    protocol = Protocol(
        warmup=1, iters=2, repeats=3, batch=2, shape=(3, 64, 64), layouts=('first', 'last'), device='cpu'
    )
    result = benchmark(names, protocol, baseline=names[1], apart=True)
    assert [(m.name, m.layout) for m in result.measurements] == [(n, lay) for n in names for lay in ('first', 'last')]
    for found in result.measurements:
        assert found.batch == 2 and found.shape == (3, 64, 64) and found.flops > 0
        assert [len(turn) for turn in found.turns] == [2, 2, 2]
        assert len(found.faults) == len(found.peak_growth) == 3
        assert all(step > 0 for turn in found.turns for step in turn)
    assert result.notes == ([f'{names[0]}: freed memory is kept'] if sys.platform == 'linux' else [])
    assert all(name in as_text(result) for name in names)


@pytest.mark.slow
def test_an_error_of_another_process_is_told():
    protocol = Protocol(warmup=0, iters=1, repeats=1, batch=1, device='cpu')
    with pytest.raises(UserError, match="no model 'zzzz'") as caught:
        benchmark(['timm:zzzz'], protocol, apart=True)
    assert 'names are allowed' in caught.value.remedy


def test_boxes_lie_in_the_image():
    boxes = random_boxes(500, 100, 300)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 300.001).all() and (boxes[:, 3] <= 100.001).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 15.99).all()
    regions = random_regions(7, torch.zeros(3, 3, 100, 300))
    assert regions.shape == (21, 5)
    assert torch.bincount(regions[:, 0].long()).tolist() == [7, 7, 7]


def test_memory_and_page_faults_are_seen():
    faults = page_faults()
    with peak_growth(CPU) as growth:
        np.ones(64 * MIB // 8)
    assert 60 * MIB < growth.size < 90 * MIB
    assert page_faults() > faults
    assert available_memory() is None or available_memory() > 2**28


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr('dense.benchmark.hardware._CGROUP', tmp_path)
    (tmp_path / 'memory.current').write_text('300\n')
    (tmp_path / 'memory.max').write_text('1000\n')
    assert available_memory() == 700
    (tmp_path / 'memory.max').write_text('max\n')
    assert available_memory() != 700


def test_threads_are_given_back(fakes):
    clock, _, build = fakes
    before = torch.get_num_threads()
    benchmark(['a:1'], Protocol(iters=1, warmup=0, threads=before + 1, device='cpu', batch=1), build=build, clock=clock)
    assert torch.get_num_threads() == before


def test_rate_of_a_matrix_product():
    ticks = iter(range(100))
    assert gemm_rate(CPU, clock=lambda: next(ticks), repeats=1) == 2 * 2048**3


@pytest.fixture
def result():
    long_name = 'configs/mask_rcnn/mask-rcnn_inceptionnext-t_fpn_1x_coco.py'
    measurements = [
        measurement([[1.0, 2.0, 3.0]], batch=8, name=long_name),
        measurement([[1.0, 1.0, 1.0]], batch=8, name=long_name, layout='last'),
        measurement([[4.0, 4.0, 4.0]], batch=8, name='timm:resnet50', faults=[2.5], peak_growth=[3 * MIB]),
    ]
    protocol = bench._completed(Protocol(device='cpu', repeats=1))
    return Result(protocol, 'a processor', {'torch': '2'}, [], [32e9], measurements, 'timm:resnet50')


def test_tables(result):
    text = as_text(result)
    assert max(map(len, text.splitlines())) <= 80
    cells = [line.split() for line in text.splitlines()]
    assert ['[1]', 'last', '8', '8', '1000', '4.00'] in cells
    assert ['timm:resnet50', 'first', '8', '2', '4000', '1.00'] in cells
    assert ['timm:resnet50', '4.0', '12%', '2', '3'] in cells
    assert '- [1] configs/mask_rcnn/' in text and 'batch norms not fused' in text
    assert '| timm:resnet50 | first | 8 | 2 | 4000 | 1.00 |' in as_markdown(result)


def test_json_holds_everything(result):
    written = json.loads(as_json(result))
    assert [m['is_best'] for m in written['measurements']] == [False, True, True]
    assert [m['ratio'] for m in written['measurements']] == [2, 4, 1]
    assert written['measurements'][0]['turns'] == [[1, 2, 3]]
    assert {'hardware', 'versions', 'protocol', 'gemm', 'notes', 'baseline'} <= set(written)


def test_out_is_checked_before_the_run(result, tmp_path):
    for name in ('result.txt', 'nowhere/result.json'):
        with pytest.raises(UserError):
            check_out(tmp_path / name)
    for name in ('result.json', 'result.md'):
        check_out(tmp_path / name)
        write(result, tmp_path / name)
        assert (tmp_path / name).read_text().endswith('\n')


def test_the_command(tmp_path, capsys):
    main = runpy.run_path(str(PROJECT / 'tools' / 'benchmark.py'))['main']
    out = tmp_path / 'result.json'
    models = ['InceptionNeXt:atto', '--baseline', 'timm:fasternet_t0']
    small = ['--shape', '2', '3', '32', '32', '--warmup', '0', '--iters', '1', '--repeats', '1', '--device', 'cpu']
    assert main([*models, *small, '--mode', 'train', '--out', str(out)]) == 0
    shown = capsys.readouterr().out
    assert 'timm:fasternet_t0' in shown and ' 1.00' in shown
    assert len(json.loads(out.read_text())['measurements']) == 4
    assert main(['InceptionNeXt:atto+fused', *small, '--mode', 'train']) == 2
    assert capsys.readouterr().err.startswith('error: InceptionNeXt:atto+fused cannot be trained')
