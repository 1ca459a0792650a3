"""What becomes of a run in several processes when one of them is killed, stopped, throws, or has no memory left?"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import command, environment, fail_at, run, toy_file
from processes import children, is_alive, wait_for
from toy_run import toy_config

from dense.engine.launch import test as evaluate
from dense.engine.launch import train

pytestmark = pytest.mark.slow

TIMEOUT = 5  # seconds that the processes wait for each other
LOADERS = dict(num_workers=2, persistent_workers=True)
# Kind of fault -> exit status, the first line on the screen, and a part of the second.
FAULTS = {
    'kill': (137, 'was killed by SIGKILL', 'no memory left'),
    'stop': (1, 'stands still: a signal stopped it', 'do not stop single processes'),
    'raise': (2, 'unexpected ValueError: a fault that nobody expects', '-rank1.txt'),
    'memory': (2, 'out of memory: cannot allocate 64 GiB', 'train_dataloader.batch_size'),
    'gpu memory': (2, 'out of GPU memory: CUDA out of memory', 'train_dataloader.batch_size'),
}


def processes_of(config: Path) -> list[str]:
    """Command lines that name the config."""
    lines = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            line = path.read_bytes().replace(b'\0', b' ').decode()
        except OSError:
            continue
        if str(config) in line and is_alive(int(path.parent.name)):
            lines.append(line)
    return lines


@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_ends_the_run(kind: str, tmp_path: Path) -> None:
    """Within the time-out, the cause first and once, with what to continue from, and no process left."""
    config = toy_file(tmp_path / 'run', fail_at(1, 6, kind), timeout=TIMEOUT, train_dataloader=LOADERS)
    done = run(config, '--gpus', '2', '--work-dir', str(tmp_path / 'run'))
    status, cause, remedy = FAULTS[kind]
    assert done.returncode == status, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith('error: rank 1: ') and cause in first
    assert second.startswith('remedy: ') and remedy in second
    # The main process may still be writing the last one.
    assert re.search(rf'; then continue from {tmp_path}/run/iter_[45]\.pth with --resume$', second)
    assert processes_of(config) == []


def final(work_dir: Path) -> dict[str, Any]:
    content = torch.load(work_dir / 'iter_12.pth', weights_only=True)
    return {key: content[key] for key in ('state_dict', 'optimizer')}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(scope='module')
def never_failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the run ends that never failed."""
    folder = tmp_path_factory.mktemp('never') / 'run'
    done = run(toy_file(folder), '--gpus', '2')
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.count('done: ') == 1, 'only the main process may write to the screen'
    return final(folder)


@pytest.mark.parametrize('launcher', ['gpus', 'torchrun'])
def test_a_run_that_starts_again_ends_where_it_would_have(
    launcher: str, tmp_path: Path, never_failed: dict[str, Any]
) -> None:
    """It goes on from its own last checkpoint, not from those of an earlier run in the same folder."""
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    torch.save({'of': 'an earlier run'}, work_dir / 'iter_99.pth')
    faults = [fail_at(1, 1, 'kill'), fail_at(0, 6, 'raise', start=1), fail_at(1, 9, 'kill', start=2)]
    config = toy_file(work_dir, *faults)
    if launcher == 'gpus':
        done = run(config, '--gpus', '2', '--max-restarts', '3', seconds=300)
        assert done.stderr.count('error: ') == 3 and 'restart 3 of 3' in done.stderr
    else:
        torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
        started = [*torchrun, '--max-restarts=3', *command(config, '--launcher', 'pytorch')[1:]]
        done = subprocess.run(started, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert re.search(rf'continuing {work_dir}/iter_[78]\.pth after [78] steps', done.stdout)
    assert same(final(work_dir), never_failed)
    assert processes_of(config) == []


@pytest.mark.parametrize('launcher', ['gpus', 'torchrun'])
def test_nothing_outlives_a_killed_launcher(launcher: str, tmp_path: Path) -> None:
    """Neither the processes nor those that load their data; torchrun itself would leave them running."""
    config = toy_file(tmp_path / 'run', steps=100_000, train_dataloader=LOADERS)
    started = command(config, '--gpus', '2')
    if launcher == 'torchrun':
        torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
        started = [*torchrun, *command(config, '--launcher', 'pytorch')[1:]]
    process = subprocess.Popen(started, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    below: list[int] = []
    try:
        assert wait_for(lambda: (tmp_path / 'run' / 'iter_3.pth').exists(), 120)
        below = children(process.pid)
        assert len(below) >= 6, 'two processes, each with two that load'
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert wait_for(lambda: not any(map(is_alive, below)), 12)
    finally:
        process.kill()
        for pid in filter(is_alive, below):
            os.kill(pid, signal.SIGKILL)


def test_under_torchrun_the_cause_comes_first_and_once(tmp_path: Path) -> None:
    config = toy_file(tmp_path / 'run', fail_at(1, 6, 'raise'), fail_at(0, 6, 'raise'))
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    started = [*torchrun, *command(config, '--launcher', 'pytorch', '--work-dir', str(tmp_path / 'run'))[1:]]
    done = subprocess.run(started, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode != 0
    first, second, *rest = done.stderr.splitlines()
    assert first.startswith('error: rank ') and 'unexpected ValueError: a fault that nobody expects' in first
    assert re.search(rf'; then continue from {tmp_path}/run/iter_[45]\.pth with --resume$', second)
    assert not [line for line in rest if line.startswith('error: rank')]
    # Both fail in the same second; neither overwrites what the other wrote.
    assert [path.name[-9:-4] for path in sorted(tmp_path.glob('run/error-*'))] == ['rank0', 'rank1']


def test_a_time_out_is_that_of_the_config(tmp_path: Path) -> None:
    """From the moment at which a process stands still."""
    config = toy_file(tmp_path / 'run', fail_at(1, 6, 'stop'), timeout=60)  # the other one writes the checkpoints
    begun: list[float] = []
    process = subprocess.Popen(
        command(config, '--gpus', '2', '--cfg-options', f'env_cfg.dist_cfg.timeout={TIMEOUT}'),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wait_for(lambda: (tmp_path / 'run' / 'iter_5.pth').exists(), 120)
    begun.append(time.monotonic())
    assert process.wait(60) == 1
    assert TIMEOUT - 2 < time.monotonic() - begun[0] < TIMEOUT + 15


def test_two_machines_train_as_one(tmp_path: Path, never_failed: dict[str, Any]) -> None:
    """Both are this one, with a launcher each; the first to come keeps the port."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    config = toy_file(tmp_path / 'run')
    started = command(config, '--gpus', '1', '--nnodes', '2', '--rdzv-endpoint', f'localhost:{port}')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    machines = [subprocess.Popen(started, env=environment(), **pipes) for _ in range(2)]
    shown = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], shown
    assert ''.join(out for out, _ in shown).count('done: ') == 1
    assert same(final(tmp_path / 'run'), never_failed)


def test_two_processes_test_as_one(tmp_path: Path) -> None:
    config = toy_file(tmp_path / 'run')
    train(toy_config(tmp_path / 'run', steps=2))
    checkpoint, out = tmp_path / 'run' / 'iter_2.pth', tmp_path / 'metrics.json'
    started = command(config, str(checkpoint), '--gpus', '2', '--out', str(out), name='test')
    done = subprocess.run(started, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert done.stdout.count(f'metrics: {out}') == 1
    expected = evaluate(toy_config(tmp_path / 'run'), checkpoint)
    assert json.loads(out.read_text())['score'] == pytest.approx(expected['score'], abs=1e-6)
