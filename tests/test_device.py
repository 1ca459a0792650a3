"""Does a run report the device that it really uses, and choose its settings by it, on every kind of system?"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config

from dense.cpu import device
from dense.data.run_inputs import RunInputs
from dense.engine.launch import load_config, train
from dense.engine.launch import test as evaluate
from dense.engine.precision import fit_precision
from dense.engine.run_defaults import add_run_defaults, add_test_defaults
from tools import _common
from tools import train as train_tool

PROJECT = Path(__file__).resolve().parent.parent
RECIPE = 'configs/upernet/upernet_convnext-t_4xb4-amp-160k_ade20k-512x512.py'
PLAIN = 'configs/upernet/upernet_inceptionnext-a_400i_own-256x256.py'

Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Function (MMEngine's device, PyTorch's accelerator, whether the processor has bfloat16)."""

    def be(used: str = 'cpu', seen: str | None = None, bfloat16: bool = False) -> None:
        monkeypatch.setattr('mmengine.device.utils.DEVICE', used)
        kind = None if seen is None else torch.device(seen)
        monkeypatch.setattr(torch.accelerator, 'is_available', lambda: seen is not None)
        monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: kind)
        monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: bfloat16)

    return be


SAID = [
    ('cpu', None, 'no GPU found: running on the CPU'),
    ('cuda', 'cuda', None),
    ('mps', 'mps', 'running on the Apple GPU (mps)'),
    ('npu', 'npu', 'running on the npu'),
    ('cpu', 'xpu', 'running on the CPU: there is an accelerator (xpu), but MMEngine cannot use it'),
]


@pytest.mark.parametrize(('used', 'seen', 'text'), SAID)
def test_what_is_said_of_the_device(used: str, seen: str | None, text: str | None, pretend: Pretend) -> None:
    if seen == 'npu':
        pretend(used)  # PyTorch has no such device before its plug-in is imported
    else:
        pretend(used, seen)
    assert device.describe_device() == text


@pytest.mark.parametrize(('seen', 'keeps'), [(None, True), ('cuda', False), ('mps', False), ('xpu', False)])
def test_freed_memory_is_kept_only_where_there_is_no_gpu(
    seen: str | None, keeps: bool, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(seen=seen)
    kept: list[bool] = []
    monkeypatch.setattr('dense.cpu.allocator.keep_memory', lambda: kept.append(True))
    monkeypatch.setenv('OMP_WAIT_POLICY', 'passive')
    assert _common.run(lambda: None, _common.parse(_common.parser('x', 'x'), [])) == 0
    assert bool(kept) is keeps


def wrapper_of(cfg: Config) -> dict[str, Any]:
    return {key: value for key, value in cfg.optim_wrapper.items() if key in ('type', 'dtype')}


def test_amp_is_refused_where_it_is_slow(pretend: Pretend, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pretend()
    assert train_tool.main([PLAIN, '--amp', '--work-dir', str(tmp_path)]) == 2
    cause, remedy = capfd.readouterr().err.splitlines()
    assert 'bfloat16' in cause and 'many times slower' in cause
    assert '--cfg-options optim_wrapper.dtype=bfloat16' in remedy


@pytest.mark.parametrize(('used', 'bfloat16', 'dtype'), [('cuda', False, None), ('cpu', True, None), ('cpu', False, 1)])
def test_amp_is_taken(used: str, bfloat16: bool, dtype: int | None, pretend: Pretend) -> None:
    pretend(used, bfloat16=bfloat16)
    insist = {'optim_wrapper.dtype': 'bfloat16'} if dtype else {}
    cfg = load_config(PLAIN, amp=True, options=insist)
    fit_precision(cfg)
    assert cfg.optim_wrapper.type == 'DenseAmpOptimWrapper'


@pytest.mark.parametrize('of_mmengine', [False, True])
@pytest.mark.parametrize(('bfloat16', 'insists'), [(False, False), (False, True), (True, False)])
def test_a_recipe_in_mixed_precision(
    of_mmengine: bool, bfloat16: bool, insists: bool, pretend: Pretend, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(bfloat16=bfloat16)
    options: dict[str, Any] = {'optim_wrapper.type': 'AmpOptimWrapper'} if of_mmengine else {}
    options |= {'optim_wrapper.dtype': 'bfloat16'} if insists else {}
    cfg = load_config(RECIPE, options={'optim_wrapper.loss_scale': 512.0, **options})
    fit_precision(cfg)
    shown = capfd.readouterr().out
    if bfloat16 or insists:
        assert cfg.optim_wrapper.type == 'DenseAmpOptimWrapper' and shown == ''
    else:
        assert wrapper_of(cfg) == dict(type='OptimWrapper') and 'loss_scale' not in cfg.optim_wrapper
        assert shown.startswith('float32 instead of mixed precision') and len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ('used', 'bfloat16', 'warns'), [('cpu', False, True), ('cpu', True, False), ('cuda', False, False)]
)
@pytest.mark.parametrize('split', ['val', 'test'])
def test_an_evaluation_in_mixed_precision_is_announced(
    split: str, used: str, bfloat16: bool, warns: bool, pretend: Pretend, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(used, bfloat16=bfloat16)

    def shown(fp16: bool) -> str:
        cfg = load_config(PLAIN, options={f'{split}_cfg.fp16': fp16}, seed=0)
        if split == 'val':
            add_run_defaults(cfg, RunInputs.read(cfg, ('train',)))
        else:
            add_test_defaults(cfg, RunInputs.read(cfg, ('test',)))
        return capfd.readouterr().out

    assert 'fp16' not in shown(fp16=False)
    notice = shown(fp16=True)
    assert (f'{split}_cfg.fp16 makes it many times slower' in notice) is warns
    assert (f'--cfg-options {split}_cfg.fp16=False' in notice) is warns


def test_the_processor_is_asked() -> None:
    """One product in each precision, by the clock: what is called slow is slow, what is called fast is not."""
    a, b = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        x, w, times = a.to(dtype), b.to(dtype), []
        for _ in range(3):
            start = time.process_time()
            for _ in range(8):
                torch.nn.functional.conv2d(x, w)
            times.append(time.process_time() - start)
        return min(times)

    ratio = seconds(torch.bfloat16) / max(seconds(torch.float32), 1e-3)
    assert (ratio < 5) == device.multiplies_bfloat16(), ratio


def test_testing_after_mixed_precision_equals_the_last_validation(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, steps=4, optim_wrapper=dict(type='DenseAmpOptimWrapper', dtype='bfloat16'))
    runner = train(cfg)
    (score,) = [value for name, value in runner.message_hub.log_scalars.items() if name == 'val/score']
    assert evaluate(cfg, tmp_path / 'iter_4.pth')['score'] == score.current()


@pytest.mark.parametrize(('before', 'after'), [(None, ':4096:8'), (':16:8', ':16:8')])
def test_deterministic_runs_give_cublas_its_workspace(
    before: str | None, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device.CUBLAS, before or '')
    if before is None:
        monkeypatch.delenv(device.CUBLAS)
    try:
        train(toy_config(tmp_path / '0', steps=1))
        assert os.environ.get(device.CUBLAS) == before
        train(toy_config(tmp_path / '1', steps=1, randomness=dict(deterministic=True)))
        assert os.environ[device.CUBLAS] == after
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


HIDDEN = """
import sys
sys.modules['resource'] = None
sys.path.insert(0, {root!r})
import os
del os.sysconf
import torch
from dense.benchmark import hardware
hardware._STATUS = hardware.Path('nowhere')
cpu = torch.device('cpu')
print(hardware.page_faults(), hardware.memory_use(cpu), 'unknown memory' in hardware.hardware(cpu))
"""


@pytest.mark.slow
def test_measuring_works_on_a_system_without_the_resource_module() -> None:
    code = HIDDEN.format(root=str(PROJECT))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.split('\n')[-2:] == ['0 (0, 0) True', ''], done.stderr
