"""Does a run give the same on one, two and four processes that share the same global batch?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from several import in_processes
from toy_scenes import train_on_scenes

IMAGES = 8  # of a step


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest, of logged values and of weights."""
    assert one['logged'].keys() == other['logged'].keys() and one['weights'].keys() == other['weights'].keys()
    logged = [np.abs(np.subtract(one['logged'][key], other['logged'][key])).max() for key in one['logged']]
    weights = [(one['weights'][key] - other['weights'][key]).abs().max().item() for key in one['weights']]
    return max(*logged, *weights)


@pytest.mark.parametrize('norm', ['GN', 'SyncBN'])
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
