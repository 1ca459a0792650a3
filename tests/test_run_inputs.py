"""Does a run find its data sets, heads and classes, and does it respect numbers set by hand?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dense  # noqa: F401  the OpenMMLab packages run only after it
from dense.data.check import fit_classes
from dense.data.run_inputs import DatasetConfig, RunInputs
from dense.engine.launch import load_config
from dense.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
HEADS = {
    'det': ['model.roi_head.bbox_head', 'model.roi_head.mask_head'],
    'seg': ['model.decode_head', 'model.auxiliary_head'],
}
NUM_CLASSES = {'det': 2, 'seg': 3}


@pytest.fixture
def inputs(
    tiny_data: Path, tiny_options: Callable[..., dict[str, Any]], tiny_config_files: dict[str, str]
) -> Callable[..., RunInputs]:
    def read(task: str, **more: Any) -> RunInputs:
        options = {**tiny_options(task, tiny_data), **{key.replace('__', '.'): value for key, value in more.items()}}
        return RunInputs.read(load_config(tiny_config_files[task], data_root=tiny_data, options=options))

    return read


@pytest.mark.parametrize('task', HEADS)
def test_what_a_run_reads(task: str, inputs: Callable[..., RunInputs], tiny_data: Path) -> None:
    found = inputs(task)
    assert [dataset.split for dataset in found.datasets] == ['train', 'val', 'test']
    assert {dataset.root for dataset in found.datasets} == {str(tiny_data)}
    assert all(folder.is_dir() for dataset in found.datasets for folder in dataset.folders.values())
    assert [dataset.ann_file is not None and dataset.ann_file.is_file() for dataset in found.datasets] == 3 * [
        task == 'det'
    ]
    assert [head.path for head in found.heads] == HEADS[task]
    assert (found.start.epoch, found.start.iter) == (0, 0)


@pytest.mark.parametrize('task', HEADS)
def test_the_data_sets_the_number_and_names_each_head(task: str, inputs: Callable[..., RunInputs]) -> None:
    found = inputs(task)
    before = [head.num_classes for head in found.heads]
    said = fit_classes(found)
    assert [head.num_classes for head in found.heads] == 2 * [NUM_CLASSES[task]]
    assert said is not None and said.startswith(f'{NUM_CLASSES[task]} classes in the data (')
    for path, number in zip(HEADS[task], before, strict=True):
        assert f'{path}.num_classes {number} -> {NUM_CLASSES[task]}' in said
    assert fit_classes(found) is None  # nothing more to replace


def test_a_number_in_a_config_file_is_not_replaced_in_silence(
    tiny_data: Path, tiny_config_files: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / 'mine.py'
    file.write_text(
        f'_base_ = {str(PROJECT / tiny_config_files["seg"])!r}\nmodel = dict(decode_head=dict(num_classes=20))\n'
    )
    said = fit_classes(RunInputs.read(load_config(file, data_root=tiny_data)))
    assert said is not None and 'model.decode_head.num_classes 20 -> 3' in said


def test_a_right_number_set_by_hand_stays(inputs: Callable[..., RunInputs]) -> None:
    found = inputs('seg', model__decode_head__num_classes=3, model__auxiliary_head__num_classes=3)
    assert fit_classes(found) is None


def test_a_wrong_number_set_by_hand_is_an_error_in_whatever_form(inputs: Callable[..., RunInputs]) -> None:
    with pytest.raises(UserError, match=r'decode_head\.num_classes is 7, but the train data has 3 classes'):
        fit_classes(inputs('seg', model__decode_head__num_classes=7))
    whole = dict(inputs('seg').heads[1].config, num_classes=7)
    with pytest.raises(UserError, match=r'auxiliary_head\.num_classes is 7'):
        fit_classes(inputs('seg', model__auxiliary_head=whole))


def test_a_data_set_without_files() -> None:
    dataset = DatasetConfig('train', dict(type='FakeDataset'), None)
    assert (dataset.root, dataset.ann_file, dataset.folders) == ('', None, {})
