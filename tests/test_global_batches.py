"""Are the global batches of several processes those of one, and is each draw numbered by its place in them?"""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS
from toy_scenes import ToyScenes

import dense
from dense.data import seeded
from dense.engine.by_size import predict_by_size

assert dense  # registers the samplers

SAMPLERS: dict[str, dict[str, Any]] = {
    'endless': dict(type='InfiniteSampler', shuffle=True),
    'epochs': dict(type='DefaultSampler', shuffle=True),
}
GROUPS: dict[str, dict[str, Any]] = {
    'plain': {},
    'full batches': dict(drop_last=True),
    'by shape': dict(inner=dict(type='mmdet.AspectRatioBatchSampler')),
    'whole updates': dict(inner=dict(type='WholeUpdates', accumulative_counts=2)),
}
LENGTH, IMAGES = 53, 8  # 6 full batches and one of 5


@pytest.fixture(autouse=True)
def registered() -> None:
    for name in ('mmdet.datasets', 'dense.classify'):
        importlib.import_module(name)


def batches(
    monkeypatch: pytest.MonkeyPatch, sampler: str, groups: str, rank: int, world_size: int, start: int = 0
) -> Iterator[list[seeded.Draw]]:
    """Of one process among several, without end."""
    # As if there were a group: what MMEngine asks of PyTorch.
    monkeypatch.setattr('mmengine.dist.utils.is_distributed', lambda: world_size > 1)
    monkeypatch.setattr('mmengine.dist.utils.get_default_group', lambda: None)
    monkeypatch.setattr('torch.distributed.get_rank', lambda group=None: rank)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda group=None: world_size)
    order = DATA_SAMPLERS.build(
        dict(type='whole_order', sampler=dict(SAMPLERS[sampler]), seed=3), default_args=dict(dataset=ToyScenes(LENGTH))
    )
    length = len(seeded.SeededBatchSampler(order, IMAGES // world_size, **GROUPS[groups]))
    epoch = 0 if sampler == 'endless' else start // length
    made = seeded.SeededBatchSampler(order, IMAGES // world_size, **GROUPS[groups], start_iter=start, start_epoch=epoch)
    while True:
        yield from made


def taken(number: int, *args: Any, **options: Any) -> list[list[seeded.Draw]]:
    source = batches(*args, **options)
    return [next(source) for _ in range(number)]


# Whole updates are those of an epoch.
PAIRS = [
    (sampler, groups) for sampler in SAMPLERS for groups in GROUPS if (sampler, groups) != ('endless', 'whole updates')
]


@pytest.mark.parametrize('world_size', [2, 4])
@pytest.mark.parametrize(('sampler', 'groups'), PAIRS)
def test_processes_share_the_batches_of_one(
    sampler: str, groups: str, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = taken(16, monkeypatch, sampler, groups, 0, 1)
    assert len({draw.number for batch in whole for draw in batch}) == sum(map(len, whole))
    for start in (0, 9):
        shares = [
            taken(16 - start, monkeypatch, sampler, groups, r, world_size, start=start) for r in range(world_size)
        ]
        for batch, *parts in zip(whole[start:], *shares, strict=True):
            assert {len(part) for part in parts} == {-(-len(batch) // world_size)}
            dealt = sorted((draw for part in parts for draw in part), key=lambda draw: draw.number)
            assert dealt[: len(batch)] == batch
            # What fills up a last batch is a sample of it once more, with an augmentation of its own.
            assert [draw.sample for draw in dealt[len(batch) :]] == [d.sample for d in batch[: len(dealt) - len(batch)]]


def test_one_process_draws_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch alone: the sampler's order, in batches, numbered."""
    order = list(DefaultSampler(ToyScenes(LENGTH), shuffle=True, seed=3))
    expected = torch.tensor(order).split(IMAGES)
    for step, batch in enumerate(taken(7, monkeypatch, 'epochs', 'plain', 0, 1)):
        assert [draw.sample for draw in batch] == expected[step].tolist()
        assert [draw.number for draw in batch] == [step * IMAGES + place for place in range(len(batch))]


class Preprocessor(torch.nn.Module):
    """What marks a segmentor's: a choice of padding in testing."""

    test_cfg = None


class Segmentor(torch.nn.Module):
    """Predicts the size of each image, and refuses batches of unequal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.data_preprocessor = Preprocessor()

    def val_step(self, data: dict[str, list[Any]]) -> list[Any]:
        stacked = torch.stack(data['inputs'])
        return [(tuple(image.shape), name) for image, name in zip(stacked, data['data_samples'], strict=True)]

    test_step = val_step


@pytest.mark.parametrize('name', ['val_step', 'test_step'])
def test_unequal_images_are_predicted_in_their_order(name: str) -> None:
    model = Segmentor()
    predict_by_size(model)
    sizes = [(3, 4, 6), (3, 6, 4), (3, 4, 6), (3, 5, 5), (3, 6, 4)]
    found = getattr(model, name)(dict(inputs=[torch.zeros(size) for size in sizes], data_samples=list('abcde')))
    assert found == list(zip(sizes, 'abcde', strict=True))
