"""Can a checkpoint run code? Never. Are our own checkpoints still read? Always."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.infer import BaseInferencer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mm_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn
from web import serve

import dense  # noqa: F401
from dense.compat import checkpoints, install
from dense.errors import UserError

install()

pytestmark = pytest.mark.smoke


class Command:
    """Pickled, it is an order to run a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


class Regression(BaseModel):
    """A line, fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.norm = nn.SyncBatchNorm(1)

    def forward(self, inputs: Tensor, target: Tensor, mode: str = 'tensor') -> dict[str, Tensor]:
        return dict(loss=(self.norm(self.line(inputs)) - target).square().mean())


class Points(torch.utils.data.Dataset):
    """Eight points of a line."""

    metainfo: ClassVar[dict] = dict(classes=('point',))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=torch.tensor([float(index)]), target=torch.tensor([2.0 * index]))


def make_runner(work_dir: Path, **changes: object) -> Runner:
    settings = dict(
        model=Regression(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=Points(),
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.5, end=2),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
    )
    return Runner(**{**settings, **changes})


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists as soon as code from a checkpoint has run."""
    return tmp_path / 'canary'


@pytest.fixture
def malicious(tmp_path: Path, canary: Path) -> Path:
    path = tmp_path / 'malicious.pth'
    torch.save(dict(state_dict=dict(weight=Command(f'touch {canary}'))), path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server on this machine that serves ``tmp_path``."""
    with serve(tmp_path) as running:
        yield running.url


@pytest.fixture
def address(request: pytest.FixtureRequest, malicious: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The malicious file, as each scheme of mmengine names it."""
    monkeypatch.setenv('TORCH_HOME', str(malicious.parent / 'torch_home'))
    url = f'{server}/{malicious.name}'
    table = dict(local=str(malicious), web=url)
    monkeypatch.setattr(mm_checkpoint, 'get_external_models', lambda: table)
    monkeypatch.setattr(mm_checkpoint, 'get_torchvision_models', lambda: table)
    monkeypatch.setattr(mm_checkpoint, 'get_mmcls_models', lambda: table)
    store = SimpleNamespace(get=lambda name: malicious.read_bytes())
    monkeypatch.setattr(checkpoints, 'get_file_backend', lambda *args, **kwargs: store)
    monkeypatch.setattr('backbones.download.try_to_load_from_cache', lambda *args, **kwargs: str(malicious))
    return {'path': str(malicious), 'url': url}.get(request.param, request.param)


ADDRESSES = (
    'path',
    'url',
    'open-mmlab://local',
    'openmmlab://web',
    'torchvision://web',
    'modelzoo://web',
    'mmcls://web',
    's3://bucket/malicious.pth',
    'petrel://bucket/malicious.pth',
    'cluster:s3://bucket/malicious.pth',
    'pavi://malicious',
    'hf-hub:owner/malicious',
    'hf_hub:owner/malicious/malicious.pth',
)


def test_the_malicious_file_works_where_nothing_protects(malicious: Path, canary: Path) -> None:
    torch.load(malicious, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize('address', ADDRESSES, indirect=True)
def test_malicious_pickle_is_refused_by_every_scheme(address: str, canary: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_checkpoint(nn.Linear(1, 1), address)
    assert caught.value.cause and caught.value.remedy
    assert not canary.exists()


def test_no_scheme_is_left_to_mmengine() -> None:
    named_elsewhere = {'torchvision://', 'modelzoo://', 'mmcls://'}  # resolve a name, then call load_from_http
    homes = {prefix: loader.__module__ for prefix, loader in CheckpointLoader._schemes.items()}
    assert set(homes) >= named_elsewhere
    assert {prefix for prefix, home in homes.items() if home != checkpoints.__name__} == named_elsewhere
    assert mm_checkpoint.load_from_http is checkpoints.load_from_http


def test_malicious_pickle_is_refused_by_resume(tmp_path: Path, malicious: Path, canary: Path) -> None:
    runner = make_runner(tmp_path / 'run', resume=True, load_from=str(malicious))
    with pytest.raises(UserError, match=r'(posix|os)\.system'):
        runner.train()
    assert not canary.exists()


@pytest.mark.skipif(not hasattr(mm_checkpoint, '_safe_torch_load'), reason='only the onedl fork has this function')
def test_the_forks_fallback_is_gone(malicious: Path, canary: Path) -> None:
    with pytest.raises(UserError):
        mm_checkpoint._safe_torch_load(str(malicious))
    with malicious.open('rb') as file, pytest.raises(Exception, match=r'[Ww]eights'):
        mm_checkpoint._safe_torch_load(file)
    assert not canary.exists()


def test_config_text_is_not_executed_by_resume(tmp_path: Path, canary: Path) -> None:
    make_runner(tmp_path / 'first', train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    path = tmp_path / 'first' / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)  # our own file, a moment ago
    text = f'__import__("os").system("touch {canary}")\n'
    checkpoint['meta']['config'] = checkpoint['meta']['cfg'] = text
    torch.save(checkpoint, path)
    runner = make_runner(tmp_path / 'second', resume=True, load_from=str(path))
    runner.train()
    assert runner.epoch == 2
    assert not canary.exists()
    Config.fromstring(text, '.py')  # the text would have run
    assert canary.exists()


@pytest.mark.parametrize('cfg', [None, {}])
def test_config_text_is_not_executed_by_an_inferencer(cfg: object, canary: Path) -> None:
    with pytest.raises(UserError, match='never executed'):
        BaseInferencer._init_model(SimpleNamespace(), cfg, 'weights.pth')
    assert not canary.exists()


def test_own_checkpoint_is_resumed_exactly(tmp_path: Path) -> None:
    whole = make_runner(tmp_path / 'whole')
    whole.train()
    resumed = make_runner(tmp_path / 'resumed', resume=True, load_from=str(tmp_path / 'whole' / 'epoch_1.pth'))
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (2, 4)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    history = resumed.message_hub.log_scalars['train/loss']
    assert len(history.data[0]) == 4


def test_own_checkpoint_is_loaded_from_a_url_once(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(source.state_dict(), tmp_path / 'line.pth')
    load_checkpoint(target, f'{server}/line.pth', strict=True)
    assert torch.equal(source.weight, target.weight)
    (tmp_path / 'line.pth').unlink()
    load_checkpoint(nn.Linear(2, 3), f'{server}/line.pth', strict=True)


def test_a_url_that_fails_names_the_reason(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    with pytest.raises(UserError, match='404'):
        load_checkpoint(nn.Linear(2, 3), f'{server}/nothing.pth')


def test_safetensors_and_file_scheme_are_read(tmp_path: Path) -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    save_file(source.state_dict(), tmp_path / 'line.safetensors')
    load_checkpoint(target, f'file://{tmp_path}/line.safetensors', strict=True)
    assert torch.equal(source.weight, target.weight)


def test_a_missing_file_and_an_unknown_name_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r'nothing\.pth'):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / 'nothing.pth'))
    monkeypatch.setattr(mm_checkpoint, 'get_external_models', lambda: dict(known='http://x'))
    with pytest.raises(UserError, match="no name 'unknown'"):
        load_checkpoint(nn.Linear(1, 1), 'open-mmlab://unknown')


def test_object_stores_go_through_mmengines_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'w.pth')
    backend = LocalBackend()
    monkeypatch.setattr(
        checkpoints, 'get_file_backend', lambda *a, **k: SimpleNamespace(get=lambda _: backend.get(tmp_path / 'w.pth'))
    )
    assert CheckpointLoader.load_checkpoint('s3://bucket/w.pth')['weight'] == 1


def test_sync_bn_becomes_bn_with_one_line_of_notice(tmp_path: Path) -> None:
    runner = make_runner(tmp_path / 'run')
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in runner.model.modules())
    assert isinstance(runner.model.norm, nn.modules.batchnorm._BatchNorm)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert sum('SyncBatchNorm' in line or 'SyncBN' in line for line in log.read_text().splitlines()) == 1


def test_every_scheme_is_tried() -> None:
    tried = {pattern for pattern in CheckpointLoader._schemes for address in ADDRESSES if re.match(pattern, address)}
    # 'path' stands for the scheme without a prefix, 'url' for both kinds of web addresses.
    assert tried | {'http://', 'https://'} == set(CheckpointLoader._schemes)
