"""Does a run give the same on one, two and four processes that share the same global batch?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaf_runs import LEAVES, evaluate_leaf, train_leaf
from several import in_processes
from toy_scenes import train_on_scenes

from dense.data.mini import write_crops, write_mini

IMAGES = 8  # of a step
GROUP_NORM = dict(type='GN', num_groups=4)
EVALUATED = 61  # no multiple of 2 or 4


@pytest.fixture(scope='session')
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Leaf -> its data: scenes of several sizes, some without an object, and pictures of single objects."""
    scenes, crops = tmp_path_factory.mktemp('scenes'), tmp_path_factory.mktemp('crops')
    write_mini(scenes, num_train=36, num_val=EVALUATED)
    write_crops(crops / 'train', num_per_class=6)
    write_crops(crops / 'val', 1, num_per_class=8)
    for path in sorted((crops / 'val').rglob('*.jpg'))[EVALUATED:]:
        path.unlink()
    return {leaf: crops if leaf == 'classifier' else scenes for leaf in LEAVES}


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest, of logged values and of weights; accuracies in percent of each process's own pixels are left out."""
    for outcome in (one, other):
        outcome['logged'] = {key: value for key, value in outcome['logged'].items() if 'acc_seg' not in key}
    assert one['logged'].keys() == other['logged'].keys() and one['weights'].keys() == other['weights'].keys()
    logged = [np.abs(np.subtract(one['logged'][key], other['logged'][key])).max() for key in one['logged']]
    weights = [(one['weights'][key] - other['weights'][key]).abs().max().item() for key in one['weights']]
    return max(*logged, *weights)


@pytest.mark.parametrize('norm', [pytest.param('GN', marks=pytest.mark.slow), 'SyncBN'])
def test_training_is_the_same(norm: str, tmp_path: Path) -> None:
    """Unequal images, numbers of objects and of sampled regions; drop path, dropout, augmentation, grouping."""
    changes = {'model.norm': norm, 'train_dataloader.batch_sampler': dict(type='mmdet.AspectRatioBatchSampler')}
    found = {}
    for number in (1, 2, 4):
        folder = tmp_path / f'{number}'
        found[number] = in_processes(number, folder, train_on_scenes, folder / 'work', IMAGES, number, changes)
    ((alone,), *others) = found.values()
    assert alone['logged']['train/loss'][0] > alone['logged']['train/loss'][-1]
    for outcome in [process for processes in others for process in processes]:
        assert difference(alone, outcome) < 1e-5


@pytest.mark.parametrize('gather', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_goes_on_in_another_number_of_processes(gather: int, tmp_path: Path) -> None:
    """Also between the steps of one update, whose gradients each process has gathered for its own images."""
    changes = {'optim_wrapper.accumulative_counts': gather}
    whole = in_processes(2, tmp_path / '2', train_on_scenes, tmp_path / 'whole', IMAGES, 2, changes)
    later = {**changes, 'resume': True, 'load_from': str(tmp_path / 'whole' / 'iter_6.pth')}
    for number in (1, 4):
        outcome, *_ = in_processes(
            number, tmp_path / f'{number}', train_on_scenes, tmp_path / f'from-2-to-{number}', IMAGES, number, later
        )
        assert difference(whole[0], outcome) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('leaf', LEAVES)
def test_twenty_steps_of_a_leaf_are_the_same(leaf: str, roots: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for number in (1, 2, 4):
        folder = tmp_path / f'{number}'
        found[number] = in_processes(number, folder, train_leaf, leaf, roots[leaf], folder / 'work', IMAGES, number, {})
    ((alone,), *others) = found.values()
    assert len(alone['logged']['train/loss']) == 20
    for outcome in [process for processes in others for process in processes]:
        assert difference(alone, outcome) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if leaf != 'RetinaNet'])
def test_evaluation_is_the_same(leaf: str, roots: dict[str, Path], tmp_path: Path) -> None:
    """Of 61 images; a segmentor's also in batches of images of unequal size."""
    work_dir = tmp_path / 'work'
    in_processes(1, tmp_path / 'train', train_leaf, leaf, roots[leaf], work_dir, IMAGES, 1, {})
    found = []
    for number in (1, 2, 4):
        found += in_processes(number, tmp_path / f'{number}', evaluate_leaf, leaf, roots[leaf], work_dir, number, {})
    assert all(metrics == found[0] for metrics in found)
    assert any(0 < value < 100 for value in found[0].values())
    if leaf == 'UperNet':
        changes = {'test_dataloader.batch_size': 4}
        (batched,) = in_processes(1, tmp_path / 'b', evaluate_leaf, leaf, roots[leaf], work_dir, 1, changes)
        assert batched == pytest.approx(found[0], abs=0.01)


NO_NOISE: dict[str, dict[str, Any]] = {
    'UperNet': {
        **{f'model.{head}.dropout_ratio': 0 for head in ('decode_head', 'auxiliary_head')},
        **{f'model.{part}.norm_cfg': GROUP_NORM for part in ('decode_head', 'auxiliary_head')},
        'model.backbone.out_norm': GROUP_NORM,
    },
    'classifier': {'model.head.dropout': 0.0, 'model.train_cfg': dict(label_smoothing=0.1)},
}


@pytest.mark.slow
@pytest.mark.parametrize('leaf', NO_NOISE)
def test_gathered_steps_equal_a_large_batch(leaf: str, roots: dict[str, Path], tmp_path: Path) -> None:
    """Four steps of two images and one of eight; each image keeps its place and its augmentation."""
    found = []
    for counts in (1, 4):
        changes = {**NO_NOISE[leaf], 'model.backbone.drop_path_rate': 0.0, 'optim_wrapper.accumulative_counts': counts}
        folder, images, steps = tmp_path / f'{counts}', IMAGES // counts, 5 * counts
        found += in_processes(1, folder, train_leaf, leaf, roots[leaf], folder / 'work', images, 1, changes, steps)
    large, gathered = found
    weights = [(large['weights'][key] - gathered['weights'][key]).abs().max().item() for key in large['weights']]
    assert max(weights) < 1e-5
    assert sum(gathered['logged']['train/loss'][:4]) / 4 == pytest.approx(large['logged']['train/loss'][0], abs=1e-5)
