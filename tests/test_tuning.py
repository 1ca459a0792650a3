"""What do the tools choose for training on a CPU, can it be turned off, and do checkpoints stay compatible?"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

import backbones
from backbones import FasterNet, InceptionNeXt
from backbones.fast import winograd
from backbones.fast.winograd import WinogradConv2d
from dense.cpu import defaults as tuning
from dense.cpu.defaults import compile_backbones, set_cpu_defaults
from dense.engine.launch import load_config, train
from dense.engine.launch import test as evaluate
from dense.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
ATTO = dict(type='InceptionNeXt', arch='atto')
# AdamW's first steps make a large step of a rounding difference in a gradient near 0.
SGD = {'optim_wrapper.optimizer': dict(type='SGD', lr=1e-3, weight_decay=0.0)}


def config(backbone=ATTO, optimizer=None):
    return Config(
        dict(model=dict(backbone=dict(backbone)), optim_wrapper=dict(optimizer=optimizer or dict(type='AdamW')))
    )


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')


CHOICES = [
    (ATTO, dict(type='AdamW'), True, True),
    (dict(ATTO, lean_mlp=False), dict(type='AdamW', fused=False), False, False),
    (dict(type='ConvNeXt'), dict(type='AdamW', foreach=True), True, None),
    (dict(type=InceptionNeXt), dict(type='SGD'), True, None),
    (dict(type='FasterNet'), dict(type='AdamW'), None, True),
    (dict(type='TimmBackbone', name='resnet18'), dict(type='AdamW'), None, True),
    (dict(type='mmdet.NotHere'), dict(type='AdamW'), None, True),
]


@pytest.mark.parametrize(('backbone', 'optimizer', 'lean', 'fused'), CHOICES, ids=range(len(CHOICES)))
def test_choices(backbone, optimizer, lean, fused, on_cpu):
    cfg = config(backbone, optimizer)
    set_cpu_defaults(cfg)
    assert cfg.model.backbone.get('lean_mlp') is lean
    assert cfg.optim_wrapper.optimizer.get('fused') is fused


def test_every_backbone_has_its_choice():
    types = [backbone['type'] for backbone, *_ in CHOICES]
    assert {getattr(kind, '__name__', kind) for kind in types} >= set(backbones.__all__)


@pytest.mark.parametrize('device', ['cuda', 'mps', 'npu'])
def test_nothing_is_chosen_for_a_gpu(device, monkeypatch):
    monkeypatch.setattr('mmengine.device.utils.DEVICE', device)
    cfg = config()
    set_cpu_defaults(cfg)
    assert 'lean_mlp' not in cfg.model.backbone and 'fused' not in cfg.optim_wrapper.optimizer


@pytest.mark.slow
@pytest.mark.usefixtures('all_in_tiles')
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_runs_with_and_without_are_exchangeable(task, tiny_data, tiny_options, tiny_config_files, tmp_path, on_cpu):
    """A run that was begun with the choices goes on without them, and the other way round, to the same losses."""
    off = {'model.backbone.lean_mlp': False, 'winograd': False}

    def run(name, more, resume=None):
        options = {**tiny_options(task, tiny_data, iters=2), **SGD, **more}
        options['default_hooks.checkpoint.interval'] = 1
        cfg = load_config(
            tiny_config_files[task], work_dir=tmp_path / name, data_root=tiny_data, options=options, resume=resume,
            seed=None if resume else 3,
        )  # fmt: skip
        runner = train(cfg)
        lean = {block.lean_mlp for stage in runner.model.backbone.stages for block in stage.blocks}
        assert lean == {more == {}}
        assert any(isinstance(module, WinogradConv2d) for module in runner.model.modules()) == (more == {})
        return runner.model.state_dict()

    states = [run('on', {}), run('off', off)]
    states.append(run('on-off', off, resume=str(tmp_path / 'on' / 'iter_1.pth')))
    states.append(run('off-on', {}, resume=str(tmp_path / 'off' / 'iter_1.pth')))
    for other in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_fused_state_resumes_a_loop_and_the_other_way_round():
    def problem(fused):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)

    def steps(layer, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            layer(torch.ones(2, 5)).pow(3).sum().backward()
            optimizer.step()

    layer, optimizer = problem(None)
    steps(layer, optimizer, 4)
    for first, second in ((True, None), (None, True)):
        begun, begun_optimizer = problem(first)
        steps(begun, begun_optimizer, 2)
        resumed, resumed_optimizer = problem(second)
        resumed.load_state_dict(begun.state_dict())
        resumed_optimizer.load_state_dict(begun_optimizer.state_dict())
        steps(resumed, resumed_optimizer, 2)
        torch.testing.assert_close(resumed.weight, layer.weight)


@pytest.mark.usefixtures('all_in_tiles')
def test_testing_gives_the_same_metrics(tiny_data, tiny_options, tiny_config_files, tmp_path, on_cpu, monkeypatch):
    options = tiny_options('seg', tiny_data, iters=1)
    used = []
    monkeypatch.setattr('dense.engine.runner.use_winograd', lambda model: used.append(winograd.use_winograd(model)))

    def load(name, more):
        return load_config(
            tiny_config_files['seg'], work_dir=tmp_path / name, data_root=tiny_data, options={**options, **more}
        )

    train(load('train', {'winograd': False}))
    assert used == []
    (checkpoint,) = (tmp_path / 'train').glob('iter_*.pth')
    metrics = [evaluate(load(name, more), checkpoint) for name, more in (('off', {'winograd': False}), ('on', {}))]
    assert len(used) == 1 and used[0] > 0
    assert metrics[0] == pytest.approx(metrics[1], abs=0.5) and len(metrics[0]) >= 3


@pytest.mark.parametrize(('family', 'lean'), [(InceptionNeXt, True), (FasterNet, False)])
def test_tuned_models(family, lean):
    model = nn.ModuleDict(dict(backbone=family(min(family.ARCHS)), neck=nn.Conv2d(256, 256, 3, padding=1)))
    names = list(model.state_dict())
    tuning.apply_cpu_rewrites(model)
    assert any(getattr(module, 'lean_mlp', False) for module in model.modules()) == lean
    assert isinstance(model.neck, WinogradConv2d) and list(model.state_dict()) == names


def test_only_the_backbone_is_compiled():
    torch.compiler.reset()
    model = nn.ModuleDict(dict(backbone=InceptionNeXt('atto', layer_scale_init_value=0.5), head=nn.Conv2d(320, 2, 1)))
    names, x = list(model.state_dict()), torch.randn(2, 3, 64, 64)
    expected = model.backbone(x)
    assert compile_backbones(model, dict(backend='eager', fullgraph=True)) == ['backbone']
    assert list(model.state_dict()) == names
    assert model.backbone._compiled_call_impl is not None and model.head._compiled_call_impl is None
    for got, wanted in zip(model.backbone(x), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_evaluation_does_not_run_compiled_code():
    """A compiled graph rounds otherwise; this backend's graphs are wrong altogether."""
    torch.compiler.reset()
    runs = []

    def perturb(graph, example_inputs):
        def run(*args):
            runs.append(len(args))
            return tuple(out + 1 for out in graph(*args))

        return run

    model = nn.ModuleDict(dict(backbone=InceptionNeXt('atto', drop_path_rate=0.0)))
    original, x = copy.deepcopy(model), torch.randn(2, 3, 64, 64)
    compile_backbones(model, dict(backend=perturb))
    for mode, number in ((True, 1), (False, 1), (True, 2), (False, 2)):
        with torch.set_grad_enabled(mode):
            got, expected = model.train(mode).backbone(x), original.train(mode).backbone(x)
        assert all(map(torch.equal, got, expected)) is not mode
        assert len(runs) == number
    assert copy.deepcopy(model).backbone._compiled_call_impl is None, 'a copy, such as the averaged model, is plain'


def test_nothing_to_compile():
    with pytest.raises(UserError, match='nothing to compile'):
        compile_backbones(nn.Linear(2, 2), {})


def test_checkpointing_is_not_compiled():
    model = nn.ModuleDict(dict(backbone=InceptionNeXt('atto', with_cp=True)))
    with pytest.raises(UserError, match='backbone has activation checkpointing') as caught:
        compile_backbones(model, {})
    assert 'with_cp=False' in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_training_with_a_compiled_backbone(task, tiny_data, tiny_options, tiny_config_files, tmp_path, capfd):
    """Same weights as without; the graphs are run by PyTorch itself, because a compiler need not be installed."""
    torch.compiler.reset()
    states = []
    for compiled in (False, True):
        options = {**tiny_options(task, tiny_data), 'compile': dict(backend='eager'), **SGD}
        if not compiled:
            del options['compile']
        cfg = load_config(
            tiny_config_files[task], work_dir=tmp_path / str(compiled), data_root=tiny_data, options=options,
            compiled=compiled,
        )  # fmt: skip
        runner = train(cfg)
        assert (runner.model.backbone._compiled_call_impl is not None) is compiled
        states.append(runner.model.state_dict())
    torch.testing.assert_close(states[1], states[0])
    assert capfd.readouterr().out.count('compiled at the first steps, which take longer: backbone') == 1


def test_compile_is_an_option_of_the_config(tiny_config_files):
    assert load_config(tiny_config_files['seg']).get('compile') is None
    assert load_config(tiny_config_files['seg'], compiled=True).compile is True
    own = {'compile': {'backend': 'eager'}}
    assert load_config(tiny_config_files['seg'], compiled=True, options=own).compile.backend == 'eager'


FAULTS = """
import sys
sys.path.insert(0, {root!r})
import argparse
from tools import _common

def command():
    import torch
    from dense.benchmark.hardware import page_faults
    for _ in range(3):
        torch.ones(16 << 20)
    before = page_faults()
    for _ in range(5):
        torch.ones(16 << 20)
    print(page_faults() - before)

_common.run(command, argparse.Namespace(traceback=True), keep_memory={keep})
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the C library of Linux is concerned')
@pytest.mark.parametrize(('keep', 'switch', 'kept'), [(True, None, True), (True, '0', False)])
@pytest.mark.slow
def test_commands_keep_memory(keep, switch, kept):
    environment = {name: value for name, value in os.environ.items() if name != 'DENSE_KEEP_MEMORY'}
    if switch is not None:
        environment['DENSE_KEEP_MEMORY'] = switch
    code = FAULTS.format(root=str(PROJECT), keep=keep)
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    faults = int(done.stdout.split()[-1])
    # 5 blocks of 64 MiB are 16384 pages each, or 32 large ones.
    assert faults < 20 if kept else faults >= 5 * 32
