"""Does the folder of a run tell how to repeat it, without anything secret?"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config

from dense.data.index_hash import data_index
from dense.engine import run_record
from dense.engine.code_state import MAX_DIFF, CodeState, read_code_state
from dense.engine.launch import load_config, train
from dense.engine.run_record import add_record, without_secrets

SECRET = 'hunter2hunter2'
PROJECT = Path(__file__).resolve().parent.parent


def records(folder: Path, name: str = 'run.json') -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text())['runs']


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / 'clone'
    folder.mkdir()
    (folder / 'code.py').write_text('x = 1\n')
    for arguments in (['init', '-q'], ['add', '.'], ['-c', 'user.name=a', '-c', 'user.email=a', 'commit', '-qm', 'a']):
        subprocess.run(['git', '-C', str(folder), *arguments], check=True)
    return folder


def test_each_start_adds_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MY_ACCESS', SECRET)
    monkeypatch.setattr('sys.argv', ['train.py', 'x.py', '--cfg-options', f'hub.token={SECRET}'])
    train(toy_config(tmp_path, steps=3))
    (first,) = records(tmp_path)
    again = toy_config(tmp_path, steps=5)
    again.resume = True
    train(again)
    kept, second = records(tmp_path)
    assert kept == first
    assert (first['start_iter'], first['resumed_from']) == (0, None)
    assert second['start_iter'] == 3 and second['resumed_from'].endswith('iter_3.pth')
    last = second['weights'][-1]
    assert (last['part'], last['loaded'], last['total']) == ('model', 9, 9)
    assert last['sha256'] == hashlib.sha256((tmp_path / 'iter_3.pth').read_bytes()).hexdigest()
    assert first['versions']['torch'] == torch.__version__ and first['hardware']['processes'] == 1
    assert first['seed'] == 3 and first['data']['train'][0]['samples'] == 10
    assert SECRET not in (tmp_path / 'run.json').read_text()
    assert first['command'] == ['train.py', 'x.py', '--cfg-options', "hub.token='***'"]


def test_the_recorded_config_repeats_the_run(tmp_path: Path) -> None:
    expected = train(toy_config(tmp_path / 'first', steps=3)).model.state_dict()
    (tmp_path / 'again.py').write_text(records(tmp_path / 'first')[0]['config'])
    cfg = load_config(tmp_path / 'again.py', work_dir=tmp_path / 'again')
    got = train(cfg).model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=name)


def test_changes_to_the_code_are_kept_beside(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, 'PROJECT', clone)
    monkeypatch.setattr(run_record, 'IS_CLONE', True)
    work = tmp_path / 'work'
    work.mkdir()
    for content in ('x = 1\n', 'x = 2\n', 'x = 2\n', 'x = 3\n'):
        (clone / 'code.py').write_text(content)
        add_record(work, {})
    (clone / 'new.py').touch()
    add_record(work, {})
    codes = [record['code'] for record in records(work)]
    assert [code['diff'] for code in codes] == [None, 'code.diff', 'code.diff', 'code-2.diff', 'code-2.diff']
    assert '+x = 2' in (work / 'code.diff').read_text() and '+x = 3' in (work / 'code-2.diff').read_text()
    assert len({code['commit'] for code in codes}) == 1 and len(codes[0]['commit']) == 40
    assert [code['untracked'] for code in codes] == [[], [], [], [], ['new.py']]
    subprocess.run(['git', '-C', str(clone), 'checkout', '-q', '.'], check=True)
    subprocess.run(['git', '-C', str(clone), 'apply', str(work / 'code-2.diff')], check=True)
    assert (clone / 'code.py').read_text() == 'x = 3\n'


def test_a_long_diff_is_cut_and_its_hash_is_whole(clone: Path) -> None:
    (clone / 'code.py').write_text('y = 0\n' * (MAX_DIFF // 4))
    state = read_code_state(clone)
    assert isinstance(state, CodeState) and len(state.diff) == MAX_DIFF < state.diff_bytes
    whole = subprocess.run(['git', '-C', str(clone), 'diff', 'HEAD'], capture_output=True, check=True).stdout
    assert state.diff_sha256 == hashlib.sha256(whole).hexdigest()


def test_no_clone_or_no_git_is_no_error(tmp_path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_code_state(tmp_path) is None
    monkeypatch.setenv('PATH', '')
    assert read_code_state(clone) is None


@pytest.mark.parametrize('content', [b'', b'{"runs": 1}', b'[]', b'\xff\xfe'])
def test_a_file_that_cannot_be_read_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'run.json').write_bytes(content)
    add_record(tmp_path, dict(a=1))
    add_record(tmp_path, dict(a=2))
    assert (tmp_path / 'run.json').read_bytes() == content
    assert [record['a'] for record in records(tmp_path, 'run-2.json')] == [1, 2]


TEXTS = {
    'https://me:pass@host/x.pth': 'https://***@host/x.pth',
    "hook = dict(type='W', api_key='abc', name='x')": "hook = dict(type='W', api_key='***', name='x')",
    '{"hf_token": "abc", "lr": 1}': '{"hf_token": \'***\', "lr": 1}',
    'wandb.password=abc': "wandb.password='***'",
    'model.num_tokens_kept': 'model.num_tokens_kept',
    'lr=0.1 max_iters=5': 'lr=0.1 max_iters=5',
}


@pytest.mark.parametrize('text', TEXTS)
def test_what_looks_like_a_credential_is_replaced(text: str) -> None:
    assert without_secrets(text) == TEXTS[text]


def test_the_backbones_weights_are_named(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from backbones import InceptionNeXt

    arch = dict(dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), branch_ratio=1 / 8)
    torch.save(InceptionNeXt(arch=arch).state_dict(), tmp_path / 'w.pth')
    backbone = InceptionNeXt(arch=arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    backbone.init_weights()
    model = torch.nn.ModuleDict(dict(backbone=backbone))
    (found,) = run_record._weights(SimpleNamespace(model=model, hooks=[], cfg=Config()))
    number = len(backbone.state_dict())
    assert found == dict(
        part='backbone', source=str(tmp_path / 'w.pth'), loaded=number, total=number,
        sha256=hashlib.sha256((tmp_path / 'w.pth').read_bytes()).hexdigest(),
    )  # fmt: skip


class Files:
    """A data set of files below a root."""

    def __init__(self, root: str, names: list[str]) -> None:
        self.data_root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(img_path=f'{self.data_root}/{self.names[index]}')


def test_the_hash_of_the_data_tells_names_and_not_places(tmp_path: Path) -> None:
    same = [data_index(Files(root, ['a.jpg', 'b.jpg']))[0]['sha256'] for root in ('/data', '/elsewhere/x')]
    other = data_index(Files('/data', ['a.jpg', 'c.jpg']))[0]['sha256']
    assert same[0] == same[1] != other
    file = tmp_path / 'a.json'
    file.write_text('{}')
    listed = Files('/data', ['a.jpg'])
    listed.ann_file = str(file)  # type: ignore[attr-defined]
    assert data_index(listed)[0]['sha256'] == hashlib.sha256(b'{}').hexdigest()
