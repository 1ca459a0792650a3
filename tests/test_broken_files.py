"""Are files that can be read, but hold no sound weights or no state of a run, refused in two lines?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from published import ARCH, official_inceptionnext
from toy_run import toy_config

from backbones import InceptionNeXt
from backbones.serialization import CheckpointError
from backbones.weights import load_pretrained
from dense.console.explain_error import explain
from dense.engine.launch import test as evaluate
from dense.engine.launch import train
from dense.export.from_config import export_config

Content = dict[str, Any]


def nested() -> Content:
    """Forty levels, each twice in the one above: 2 ** 40 steps for whoever walks it."""
    inner: Content = {}
    for _ in range(40):
        inner = {'a': inner, 'b': inner}
    return inner


def in_itself() -> Content:
    content: Content = {}
    content['again'] = content
    return content


def two_lines(error: BaseException) -> str:
    found = explain(error)
    assert found is not None, error
    assert all(line and '\n' not in line for line in found)
    return ' | '.join(found)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('trained')
    train(toy_config(folder, steps=3))
    return folder / 'iter_2.pth'


def changed(path: Path, change: Callable[[Content], object], folder: Path) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, folder / 'changed.pth')
    return folder / 'changed.pth'


# What is done to a checkpoint, and what a resumed run says.

HUGE_LOG = {'plain_history': torch.zeros(1, dtype=torch.float64).expand(1 << 32), 'counts': torch.zeros(1)}


def log(value: Any) -> Callable[[Content], object]:
    return lambda content: content['message_hub']['log_scalars'].update(loss=value)


def hub(value: Any) -> Callable[[Content], object]:
    return lambda content: content['message_hub']['runtime_info'].update(x=value)


def meta(**values: Any) -> Callable[[Content], object]:
    return lambda content: content['meta'].update(values)


NO_STATE: dict[str, tuple[Callable[[Content], object], str]] = {
    'nested': (hub(nested()), 'more than 1000000 items, or 40 levels'),
    'in itself': (hub(in_itself()), 'more than 1000000 items, or 40 levels'),
    'nested optimizer': (lambda content: content['optimizer']['state'].update({0: nested()}), 'or 40 levels'),
    'huge log': (log(HUGE_LOG), 'log history loss is not one'),
    'number as log': (log({'plain_history': 3, 'counts': 3}), 'log history loss is not one'),
    'text as log': (log('x'), 'log history loss is not one'),
    'table as log': (log({'plain_history': torch.zeros(2, 2).double(), 'counts': torch.ones(2)}), 'is not one'),
    'log without counts': (log({'plain_history': torch.zeros(2).double()}), 'is not one'),
    'logs as text': (lambda content: content['message_hub'].update(log_scalars='x'), 'log_scalars is not one'),
    'steps as text': (meta(iter='many'), "meta.iter is 'many', not a whole number"),
    'negative step': (meta(iter=-5), 'meta.iter is -5'),
    'epoch as list': (meta(epoch=[1]), r'meta.epoch is \[1\]'),
    'seed as text': (meta(seed='abc'), "meta.seed is 'abc'"),
    'meta as text': (lambda content: content.update(meta='x'), "'meta' is a str"),
    'hub as list': (lambda content: content.update(message_hub=[1]), 'message_hub is a list'),
    'optimizer empty': (lambda content: content.update(optimizer={}), 'optimizer is empty'),
    'optimizer as text': (lambda content: content.update(optimizer='x'), 'optimizer is a str'),
    'optimizer of nothing': (lambda content: content.update(optimizer={'x': 1}), 'no state that this run can go on'),
    'optimizer without groups': (lambda content: content['optimizer'].update(param_groups=[]), 'no state that this'),
    'schedulers empty': (lambda content: content.update(param_schedulers=[]), 'with 0 schedulers .* has 1'),
    'two schedulers': (lambda content: content['param_schedulers'].append({}), 'with 2 schedulers .* has 1'),
    'scheduler as text': (lambda content: content.update(param_schedulers=['x']), 'no state that this run can'),
    'weights as list': (lambda content: content.update(state_dict=[1]), "'state_dict' is a list"),
}


def with_scheduler(folder: Path, **more: Any) -> Config:
    return toy_config(folder, steps=3, param_scheduler=[dict(type='LinearLR', by_epoch=False, end=3)], **more)


@pytest.mark.timeout(60)
@pytest.mark.parametrize('name', NO_STATE)
def test_what_is_no_state_of_a_run_is_not_resumed(name: str, tmp_path: Path) -> None:
    change, cause = NO_STATE[name]
    train(with_scheduler(tmp_path))
    path = changed(tmp_path / 'iter_2.pth', change, tmp_path)
    began = time.monotonic()
    with pytest.raises(ValueError, match=cause) as caught:
        train(with_scheduler(tmp_path / 'again', resume=True, load_from=str(path)))
    two_lines(caught.value)
    assert time.monotonic() - began < 20


def test_schedulers_that_the_config_lacks(tmp_path: Path) -> None:
    train(with_scheduler(tmp_path))
    with pytest.raises(ValueError, match=r'with 1 schedulers .* has 0') as caught:
        train(toy_config(tmp_path / 'again', steps=3, resume=True, load_from=str(tmp_path / 'iter_2.pth')))
    two_lines(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize('name', ['nested', 'in itself', 'huge log'])
def test_tests_and_new_runs_take_the_weights_alone(name: str, trained: Path, tmp_path: Path) -> None:
    path = changed(trained, NO_STATE[name][0], tmp_path)
    assert evaluate(toy_config(tmp_path / 'test'), path)['score'] < 1
    assert train(toy_config(tmp_path / 'new', steps=1, load_from=str(path))).iter == 1


# What a file holds instead of a checkpoint.
NO_WEIGHTS: dict[str, Any] = {
    'numbers as names': {'state_dict': {1: torch.ones(1)}},
    'a list of tensors': {'state_dict': [torch.ones(1)]},
    'a list': [1, 2],
    'a tensor': torch.ones(3),
    'a number': 3,
    'meta as text': {'state_dict': {'x': torch.ones(1)}, 'meta': 'x'},
    'nothing that fits': {'state_dict': {'x': torch.ones(1)}},
    'no tensors': {'state_dict': {'x': 1}},
}


@pytest.mark.parametrize('name', NO_WEIGHTS)
def test_what_holds_no_weights_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / 'file.pth'
    torch.save(NO_WEIGHTS[name], path)
    for command in (
        lambda: evaluate(toy_config(tmp_path / 'test'), path),
        lambda: train(toy_config(tmp_path / 'new', steps=1, load_from=str(path))),
    ):
        with pytest.raises(ValueError) as caught:
            command()
        two_lines(caught.value)


@pytest.mark.parametrize('name', NO_WEIGHTS)
def test_what_holds_no_weights_is_not_exported(
    name: str, tmp_path: Path, tiny_data: Path, tiny_options: Callable[..., Content], tiny_config_files: dict[str, str]
) -> None:
    torch.save(NO_WEIGHTS[name], tmp_path / 'file.pth')
    config, options = Path(__file__).parents[1] / tiny_config_files['seg'], tiny_options('seg', tiny_data)
    with pytest.raises(ValueError) as caught:
        export_config(config, tmp_path / 'file.pth', tmp_path / 'x.onnx', options=options)
    two_lines(caught.value)


# What is made of one tensor of the weights, and what the error says.
FAULTS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    'NaN': (lambda weight: weight * torch.nan, 'NaN or infinite weights'),
    'infinity': (lambda weight: weight.index_fill(0, torch.tensor([0]), torch.inf), 'NaN or infinite weights'),
    'infinity in float16': (lambda weight: (weight * 0 + 1e6).half(), 'NaN or infinite weights'),
    'complex': (lambda weight: weight.to(torch.complex64), 'complex numbers'),
    'whole numbers': (lambda weight: weight.long(), 'int64 in place of float32'),
    'truth values': (lambda weight: weight > 0, 'bool in place of float32'),
    'sparse': (lambda weight: weight.to_sparse(), 'sparse tensors'),
    'quantised': (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), 'quantised tensors'),
    'without data': (lambda weight: weight.to('meta'), 'tensors without data'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', FAULTS)
def test_weights_of_another_kind_are_refused_by_name(name: str, trained: Path, tmp_path: Path) -> None:
    change, cause = FAULTS[name]
    key = 'layers.0.weight'
    path = changed(trained, lambda content: content['state_dict'].update({key: change(content['state_dict'][key])}),
                   tmp_path)  # fmt: skip
    for command in (
        lambda: evaluate(toy_config(tmp_path / 'test'), path),
        lambda: train(toy_config(tmp_path / 'new', steps=1, load_from=str(path))),
        lambda: train(toy_config(tmp_path / 'again', steps=3, resume=True, load_from=str(path))),
    ):
        with pytest.raises(ValueError, match=f'{cause}: {key}') as caught:
            command()
        two_lines(caught.value)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', FAULTS)
def test_a_backbone_refuses_weights_of_another_kind_by_name(name: str, tmp_path: Path) -> None:
    change, cause = FAULTS[name]
    published = official_inceptionnext(ARCH)
    torch.save({**published, 'stem.0.weight': change(published['stem.0.weight'])}, tmp_path / 'w.pth')
    model = InceptionNeXt(ARCH)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f'{cause}: stem.0.weight') as caught:
        load_pretrained(model, tmp_path / 'w.pth')
    two_lines(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_counters_of_averaged_checkpoints_may_be_floats(trained: Path, tmp_path: Path) -> None:
    key = 'layers.1.num_batches_tracked'
    path = changed(trained, lambda content: content['state_dict'].update({key: torch.tensor(7.0)}), tmp_path)
    assert evaluate(toy_config(tmp_path / 'test'), path)['score'] < 1


def test_half_precision_weights_are_weights(trained: Path, tmp_path: Path) -> None:
    def halve(content: Content) -> None:
        content['state_dict'] = {
            key: value.bfloat16() if value.is_floating_point() else value
            for key, value in content['state_dict'].items()
        }

    assert evaluate(toy_config(tmp_path / 'test'), changed(trained, halve, tmp_path))['score'] < 1


# Advice.


def test_load_from_does_not_advise_itself(tmp_path: Path) -> None:
    torch.save({'state_dict': {'x': torch.ones(1)}}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='0 of 9 tensors match') as caught:
        train(toy_config(tmp_path, steps=1, load_from=str(tmp_path / 'other.pth')))
    assert 'with --load-from' not in str(caught.value) and 'of this model' in str(caught.value)


@pytest.mark.parametrize('source', ['ftp://x/y.pth', 's3://bucket/y.pth', 'htp://x/y.pth', 'ftp://x/y'])
def test_unknown_scheme_names_the_known_ones(source: str) -> None:
    with pytest.raises(CheckpointError, match='is not supported') as caught:
        load_pretrained(InceptionNeXt(ARCH), source)
    assert all(scheme in two_lines(caught.value) for scheme in ('http://', 'https://', 'file://', 'hf-hub:'))


@pytest.mark.parametrize('source', ['', ' '])
def test_empty_source_is_called_empty(source: str) -> None:
    with pytest.raises(CheckpointError, match='The checkpoint is an empty text') as caught:
        load_pretrained(InceptionNeXt(ARCH), source)
    two_lines(caught.value)
