"""Does ``--gpus N`` start the processes, pass everything on, and say in two lines why one of them failed?

The processes here are scripts of a few lines, which start in no time; real runs are in test_faults.py.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import PROJECT
from mmengine.config import Config

from dense.console.explain_error import explain, is_consequence
from dense.distributed import join, launcher, start
from dense.distributed.launcher import launch
from dense.engine.options import apply_options, check_options
from dense.errors import UserError
from tools import test as test_command
from tools import train as train_command

HEAD = """
import json, os, pathlib, signal, sys, time
rank, start = int(os.environ['RANK']), int(os.environ['TORCHELASTIC_RESTART_COUNT'])
here = pathlib.Path({folder!r})
(here / f'pid-{{start}}-{{rank}}').write_text(str(os.getpid()))

def leave(cause, **more):
    content = dict(cause=cause, remedy='do this', time=time.time(), **more)
    (pathlib.Path(os.environ['DENSE_FAILURES']) / f'{{os.getpid()}}.json').write_text(json.dumps(content))
    sys.exit(2)

"""
LONG = 'time.sleep(600)'
FOLLOWS = "time.sleep(0.4); leave('lost', follows=True, checkpoint='iter_7.pth')"


def run(folder: Path, body: str, processes: int = 2, **options: Any) -> int:
    """Launch a script, and check that it leaves no process."""
    script = folder / 'script.py'
    script.write_text(HEAD.format(folder=str(folder)) + body)
    status = launch([sys.executable, '-S', str(script)], processes, **options)
    pids = [int(path.read_text()) for path in folder.glob('pid-*')]
    assert pids and not [pid for pid in pids if Path(f'/proc/{pid}').exists()]
    return status


def test_every_process_knows_its_number(tmp_path: Path) -> None:
    names = ['RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT']
    before = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)
    body = f"(here / f'env-{{rank}}').write_text(json.dumps([os.environ[name] for name in {names}]))"
    assert run(tmp_path, body, 3) == 0
    found = [json.loads((tmp_path / f'env-{rank}').read_text()) for rank in range(3)]
    assert [row[:3] for row in found] == [[str(rank), str(rank), '3'] for rank in range(3)]
    assert len({tuple(row[3:]) for row in found}) == 1, 'they meet at one place'
    assert dict(os.environ) == before and signal.getsignal(signal.SIGTERM) is handler


# What the processes do -> exit status, what the first line says, what the second says.
FAILURES = {
    'the first cause, not what follows from it': (
        f"rank and [time.sleep(0.2), leave('the cause')]\n{FOLLOWS}",
        (2, 'error: rank 1: the cause', 'remedy: do this'),
    ),
    'the earlier of two in the same second': (
        "time.sleep(0.3 * (1 - rank)); leave(f'cause {rank}')",
        (2, 'error: rank 1: cause 1', 'remedy: do this'),
    ),
    'killed': (
        f'os.kill(os.getpid(), 9) if rank == 1 else None\n{FOLLOWS}',
        (137, 'was killed by SIGKILL', 'then continue from iter_7.pth with --resume'),
    ),
    'crashed, and nobody notices': (
        f'os.kill(os.getpid(), signal.SIGSEGV) if rank == 0 else {LONG}',
        (139, 'was killed by SIGSEGV', 'if a checkpoint was saved, --resume continues from it'),
    ),
    'stopped, and another waits in vain': (
        f'os.kill(os.getpid(), signal.SIGSTOP) if rank == 1 else None\n{FOLLOWS}',
        (1, 'stands still: a signal stopped it', 'then continue from iter_7.pth with --resume'),
    ),
    'no word': ('sys.exit(3 if rank else 0)', (3, 'ended with status 3', 'its own output is above')),
    'takes long to end': (
        "import atexit\natexit.register(time.sleep, 60)\nleave('the cause') if rank else time.sleep(600)",
        (2, 'error: rank 1: the cause', 'remedy: do this'),
    ),
    'does not end when told': (
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nleave('the cause') if rank else {LONG}",
        (2, 'error: rank 1: the cause', 'remedy: do this'),
    ),
}


@pytest.mark.parametrize('name', FAILURES)
def test_the_first_cause_is_on_the_screen_once(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('dense.distributed.children.GRACE', 0.5)
    monkeypatch.setattr('dense.distributed.first_failure.ECHO', 1.0)
    body, (status, cause, remedy) = FAILURES[name]
    begun = time.monotonic()
    assert run(tmp_path, body) == status
    assert time.monotonic() - begun < 8
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith('error: rank ') and cause in first
    assert second.startswith('remedy: ') and remedy in second


def test_processes_start_again_after_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "leave('only once') if start == 0 and rank == 1 else time.sleep(0.2)"
    assert run(tmp_path, body, max_restarts=2) == 0
    assert sorted(path.name for path in tmp_path.glob('pid-*')) == ['pid-0-0', 'pid-0-1', 'pid-1-0', 'pid-1-1']
    shown = capfd.readouterr().err
    assert shown.count('rank 1: only once') == 1 and 'all processes start again (restart 1 of 2)' in shown


def test_the_last_failure_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "leave(f'start {start}')", 1, max_restarts=1) == 2
    shown = capfd.readouterr().err.splitlines()
    assert shown[0::3] == ['error: start 0', 'error: start 1'], 'a single process needs no number'


def test_a_run_that_saved_and_stopped_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The main process may still be writing when another has ended; and nothing starts again."""
    body = "rank or [time.sleep(1), (here / 'saved').touch()]\nsys.exit(75)"
    assert run(tmp_path, body, max_restarts=3) == 75
    assert (tmp_path / 'saved').exists() and len(list(tmp_path.glob('pid-*'))) == 2
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1', 'SIGINT'])
def test_signals_reach_the_processes_which_may_save(name: str, tmp_path: Path) -> None:
    body = f"""
def save(*_):
    (here / f'saved-{{rank}}').touch()
    sys.exit(75)
signal.signal(signal.{name}, save)
(here / f'ready-{{rank}}').touch()
if rank == 0:
    while not (here / 'ready-1').exists():
        time.sleep(0.05)
    os.kill(os.getppid(), signal.{name})
time.sleep(60)
"""
    assert run(tmp_path, body) == 75
    assert len(list(tmp_path.glob('saved-*'))) == 2


def busy_port() -> socket.socket:
    held = socket.socket()
    held.bind(('localhost', 0))
    held.listen()
    return held


@pytest.mark.parametrize('variable', ['MASTER_PORT', None])
def test_a_port_in_use_is_named(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy_port() as held:
        port = held.getsockname()[1]
        monkeypatch.setenv('MASTER_PORT', str(port))
        where = None if variable else f'localhost:{port}'
        with pytest.raises(UserError, match=rf'localhost:{port}: Address already in use') as caught:
            start.start(['false'], 1, nodes=1, endpoint=where, max_restarts=0)
    assert 'MASTER_PORT' in caught.value.remedy


@pytest.mark.parametrize('endpoint', ['nowhere', 'here:port', ':29500', 'here:', 'here:99999999'])
def test_a_meeting_point_has_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(UserError, match='is no HOST:PORT'):
        start.start(['false'], 1, nodes=2, endpoint=endpoint, max_restarts=0)


def test_there_are_no_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, 'accelerator', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(launcher, 'launch', lambda *args, **kwargs: 7)
    with pytest.raises(UserError, match=r'--gpus 3, but this machine has 2') as caught:
        start.start(['false'], 3, nodes=1, endpoint=None, max_restarts=0)
    assert 'at most 2' in caught.value.remedy
    assert start.start(['false'], 2, nodes=1, endpoint=None, max_restarts=0) == 7


def test_torchrun_does_not_start_more_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOCAL_RANK', '2')
    monkeypatch.setattr(join, 'run_device', lambda: 'cuda')
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: 2)
    with pytest.raises(UserError, match='process 3 of this machine has no device of its own: there are 2'):
        join.join_processes(Config(dict(launcher='pytorch')))


CONFIG = str(PROJECT / 'configs' / 'upernet' / 'upernet_inceptionnext-a_400i_own-256x256.py')


@pytest.mark.parametrize('command', [train_command, test_command])
def test_every_other_option_is_passed_on(
    command: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(start, 'start', lambda command, gpus, **options: seen.append((command, gpus, options)) or 5)
    file = ['x.pth'] if command is test_command else []
    options = [CONFIG, *file, '--cfg-options', 'a=1', 'b=[1, 2]', '--work-dir', '/w d', '--traceback']
    launching = ['--gpus=2', '--max-restarts', '3', '--nnodes', '2', '--rdzv-endpoint', 'here:1']
    assert command.main([options[0], *launching[:3], *options[1:], *launching[3:]]) == 5
    ((started, gpus, rest),) = seen
    assert started[:2] == [sys.executable, '-u'] and started[2].endswith(f'{command.__name__.split(".")[-1]}.py')
    assert started[3:] == [*options, '--launcher', 'pytorch']
    assert (gpus, rest) == (2, dict(nodes=2, endpoint='here:1', max_restarts=3))


@pytest.mark.parametrize(
    'options, cause',
    [
        (['--max-restarts', '2'], '--max-restarts needs --gpus'),
        (['--nnodes', '2'], '--nnodes needs --gpus'),
        (['--gpus', '2', '--launcher', 'pytorch'], '--gpus starts the processes itself'),
        (['--gpus', '0'], '--gpus 0 is too small'),
        (['--gpus', '1', '--max-restarts', '-1'], '--max-restarts -1 is too small'),
        (['--gpus', '1', '--nnodes', '2'], 'nothing says where the machines meet'),
    ],
)
def test_options_that_do_not_fit(options: list[str], cause: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_command.main([CONFIG, *options]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith('error: ') and cause in first and second.startswith('remedy: ')


def test_a_wrong_config_fails_before_anything_starts(capfd: pytest.CaptureFixture[str]) -> None:
    assert train_command.main(['no-such-config.py', '--gpus', '2']) == 2
    assert 'config file not found: no-such-config.py' in capfd.readouterr().err


@pytest.mark.parametrize('value', [0, -5, True, '60', None, float('inf'), float('nan')])
def test_a_timeout_is_a_number_of_seconds(value: Any) -> None:
    with pytest.raises(UserError, match=r'env_cfg\.dist_cfg\.timeout is'):
        join.join_processes(Config(dict(launcher='none', env_cfg=dict(dist_cfg=dict(timeout=value)))))


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('options, seconds', [({}, 1800), ({'env_cfg.dist_cfg.timeout': 90}, 90)])
def test_the_timeout_reaches_pytorch(
    device: str, options: dict[str, Any], seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def init(backend: str, **kwargs: Any) -> None:
        seen.update(kwargs, backend=backend)

    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(join, 'run_device', lambda: device)
    monkeypatch.setattr(torch.accelerator, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda place: None)
    monkeypatch.setattr(torch.distributed, 'init_process_group', init)
    cfg = Config(dict(launcher='pytorch'))
    check_options(cfg, options)
    apply_options(cfg, options)
    join.join_processes(cfg)
    assert seen['timeout'].total_seconds() == seconds
    assert seen['backend'] == ('gloo' if device == 'cpu' else 'nccl')


def test_a_misspelt_timeout_is_found() -> None:
    with pytest.raises(UserError, match='timeuot'):
        check_options(Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))), {'env_cfg.dist_cfg.timeuot': 1})


CONNECTION: dict[str, tuple[BaseException, str, bool]] = {
    'gloo, lost': (
        RuntimeError('[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1'),
        'the connection to another process was lost',
        True,
    ),
    'gloo, late': (
        RuntimeError('Application timeout caused pair closure'),
        'did not answer within env_cfg.dist_cfg.timeout',
        True,
    ),
    'nccl': (
        torch.distributed.DistBackendError('NCCL error in: ProcessGroupNCCL.cpp, remote process exited'),
        'the connection to another process was lost',
        True,
    ),
    'busy port': (
        torch.distributed.DistNetworkError('The server socket has failed to listen. port: 29500, name: EADDRINUSE'),
        'another program uses port 29500',
        False,
    ),
}


@pytest.mark.parametrize('name', CONNECTION)
def test_errors_of_the_connection_are_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MASTER_PORT', '29500')
    error, cause, follows = CONNECTION[name]
    found = explain(error)
    assert found is not None and cause in found[0]
    assert is_consequence(error) is follows
    assert ('MASTER_PORT' in found[1]) is (name == 'busy port')


def test_what_a_user_can_fix_is_no_consequence() -> None:
    try:
        try:
            raise CONNECTION['gloo, lost'][0]
        except RuntimeError as error:
            raise UserError('cause', 'remedy') from error
    except UserError as error:
        assert not is_consequence(error)
    assert explain(RuntimeError('mat1 and mat2 shapes cannot be multiplied')) is None
