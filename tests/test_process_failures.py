"""What does one process leave behind when it fails, and where does a run that starts again go on?"""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config

from dense.console.failure import FOLDER, TORCHRUN_FILE, Failure, read_record, record_file, report
from dense.console.main import run
from dense.engine.launch import train
from dense.engine.restart import newest_of_run, note_new_run, resume_if_any, resume_if_restarted
from dense.errors import UserError

RANKS = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'TORCHELASTIC_RESTART_COUNT')


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is the second of two."""
    for name in (FOLDER, TORCHRUN_FILE, *RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    return monkeypatch


def fail() -> None:
    raise KeyError('nobody expects this')


def test_each_process_has_a_file_of_its_own(
    tmp_path: Path, second: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They may fail in the same second."""
    assert run(fail, log_dir=tmp_path) == 2
    second.setenv('RANK', '0')
    assert run(fail, log_dir=tmp_path) == 2
    second.delenv('WORLD_SIZE')
    assert run(fail, log_dir=tmp_path) == 2
    ends = sorted(path.name.removesuffix('.txt')[len('error-20260101-000000') :] for path in tmp_path.iterdir())
    assert ends == ['', '-rank0', '-rank1']
    lines = capfd.readouterr().err.splitlines()[::2]
    assert [line.split('unexpected')[0] for line in lines] == ['error: rank 1: ', 'error: rank 0: ', 'error: ']


def test_the_launcher_gets_the_failure_and_shows_it(
    tmp_path: Path, second: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    second.setenv(FOLDER, str(tmp_path))
    second.setenv(TORCHRUN_FILE, str(tmp_path / 'torchrun.json'))
    failure = Failure('cause', 'remedy', checkpoint='iter_3.pth')
    report(failure)
    assert capfd.readouterr().err == ''
    assert read_record(record_file(tmp_path, os.getpid())) == failure
    message = json.loads((tmp_path / 'torchrun.json').read_text())['message']
    assert message['message'] == 'cause' and message['extraInfo']['py_callstack'].startswith('error: cause\nremedy: ')


@pytest.mark.parametrize('content', [None, '', '{', '[]', '{"cause": "no more"}'])
def test_half_a_record_is_none(content: str | None, tmp_path: Path) -> None:
    path = record_file(tmp_path, 1)
    if content is not None:
        path.write_text(content)
    assert read_record(path) is None


def test_under_torchrun_only_the_first_speaks(second: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    store = torch.distributed.TCPStore('localhost', 0, is_master=True, timeout=timedelta(seconds=5))
    second.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    second.setenv('MASTER_ADDR', 'localhost')
    second.setenv('MASTER_PORT', str(store.port))
    for start in ('0', '1'):  # after it has started again, the run may fail again
        second.setenv('TORCHELASTIC_RESTART_COUNT', start)
        report(Failure(f'cause {start}', 'remedy'))
        report(Failure('what follows', 'remedy'))
    shown = capfd.readouterr().err.splitlines()
    assert shown[::2] == ['error: rank 1: cause 0', 'error: rank 1: cause 1']


def test_the_error_of_a_run_names_its_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cfg = toy_config(tmp_path, steps=6)
    cfg.custom_hooks = [dict(type='FailAt', rank=0, step=4, kind='memory')]
    import faults  # noqa: F401  (registers the hook)

    assert run(lambda: train(cfg) and None, log_dir=tmp_path) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first == 'error: out of memory: cannot allocate 64 GiB'
    assert second.endswith(f'; then continue from {tmp_path}/iter_3.pth with --resume')


def test_an_error_before_the_first_step_names_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(toy_config(tmp_path, steps=2))

    def misspelt() -> None:
        raise UserError('a cause', 'a remedy')

    assert run(misspelt, log_dir=tmp_path) == 2
    assert capfd.readouterr().err == 'error: a cause\nremedy: a remedy\n'


def new_run(work_dir: Path) -> Config:
    return Config(dict(work_dir=str(work_dir), resume=False, load_from='weights.pth'))


def test_a_run_goes_on_from_its_own_checkpoints_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'iter_9.pth').touch()
    note_new_run(new_run(tmp_path))
    assert newest_of_run(tmp_path) is None
    cfg = new_run(tmp_path)
    resume_if_any(cfg)
    assert (cfg.resume, cfg.load_from) == (False, 'weights.pth'), 'it starts as it did before'
    (tmp_path / 'iter_2.pth').touch()
    assert newest_of_run(tmp_path) == tmp_path / 'iter_2.pth'
    resume_if_restarted(cfg)
    assert not cfg.resume, 'nobody has started it again'
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    resume_if_restarted(cfg)
    assert (cfg.resume, cfg.load_from) == (True, None)


def test_a_resumed_run_goes_on_from_what_it_resumed(tmp_path: Path) -> None:
    (tmp_path / 'iter_9.pth').touch()
    cfg = new_run(tmp_path)
    cfg.resume = True
    note_new_run(cfg)
    assert newest_of_run(tmp_path) == tmp_path / 'iter_9.pth'


def test_an_earlier_name_that_is_written_anew_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / 'iter_9.pth'
    path.touch()
    note_new_run(new_run(tmp_path))
    os.utime(path, (1, 1))
    assert newest_of_run(tmp_path) == path
