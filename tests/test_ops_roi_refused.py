"""Are regions refused that name no image of the batch, or have no finite size, before a kernel reads by them?"""

import functools

import pytest
import torch
from torch import Tensor

from dense.compat.ops.deform_roi import deform_roi_pool
from dense.compat.ops.roi import KERNELS, roi_align, roi_pool

OPS = {
    'align by torchvision': functools.partial(roi_align, output_size=(2, 2), spatial_scale=1.0, sampling_ratio=2),
    'align, adaptive': functools.partial(roi_align, output_size=(2, 2)),
    'align, maximum': functools.partial(roi_align, output_size=(2, 2), pool_mode='max'),
    'pool': functools.partial(roi_pool, output_size=(2, 2)),
    'deformable': functools.partial(deform_roi_pool, offset=None, output_size=(2, 2)),
}
INF, NAN = float('inf'), float('nan')
NO_IMAGE = [[-1, 0, 0, 4, 4], [2, 0, 0, 4, 4], [1 << 30, 0, 0, 4, 4], [NAN, 0, 0, 4, 4]]
NO_SIZE = [[0, 0, 0, INF, 4], [0, -INF, 0, 4, 4], [1, 0, NAN, 4, 4], [0, INF, 0, INF, 4], [0, -3e38, 0, 3e38, 4]]
every_op = pytest.mark.parametrize('op', OPS)


def maps(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 6, 8, generator=torch.Generator().manual_seed(0))


def refused(function, *args: object, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        function(*args)
    assert len(str(caught.value).split('\n')) == 2


@every_op
@pytest.mark.parametrize(
    'channels', [pytest.param(3, id='few channels'), pytest.param(64, id='rows', marks=pytest.mark.slow)]
)
def test_by_every_op(op: str, channels: int) -> None:
    right = [1, 0, 0, 4, 4]
    for rows, match in ((NO_IMAGE, 'allowed are indices from 0, of 2 images'), (NO_SIZE, 'allowed are finite corners')):
        for row in rows:
            refused(OPS[op], maps(channels), torch.tensor([right, row]), match=match)
    assert OPS[op](maps(channels), torch.tensor([right, [0, -50, -50, 99, 1e4]])).isfinite().all()
    assert OPS[op](maps(channels), torch.zeros(0, 5)).shape == (0, channels, 2, 2)


@every_op
def test_a_scale_that_overflows(op: str) -> None:
    rois = torch.tensor([[0, 1e38, 0, 1e38, 4]])
    OPS[op](maps(), rois)
    refused(functools.partial(OPS[op], spatial_scale=1e3), maps(), rois, match='allowed are finite corners')


@pytest.mark.parametrize('mode', [0, 1], ids=['maximum', 'average'])
def test_by_the_functions_that_mmcv_calls(mode: int) -> None:
    x, grad, out = maps(), torch.zeros(2, 3, 6, 8), torch.zeros(1, 3, 2, 2)
    at = torch.zeros(1, 3, 2, 2)
    for row in (NO_IMAGE[0], NO_IMAGE[1], NO_SIZE[0]):
        rois = torch.tensor([row])
        refused(KERNELS['roi_align_forward'], x, rois, out, at, at, 2, 2, 1.0, 2, mode, True, match='allowed')
        refused(KERNELS['roi_align_backward'], out, rois, at, at, grad, 2, 2, 1.0, 2, mode, True, match='allowed')
        refused(KERNELS['roi_pool_forward'], x, rois, out, at.int(), 2, 2, 1.0, match='allowed')
        refused(KERNELS['roi_pool_backward'], out, rois, at.int(), grad, 2, 2, 1.0, match='allowed')
    assert not grad.any()


def test_graphs_hold_no_check() -> None:
    x, rois = maps(), torch.tensor([[1.0, 0, 0, 4, 4]])

    class Pool(torch.nn.Module):
        def forward(self, x: Tensor, rois: Tensor) -> Tensor:
            return roi_align(x, rois, 2, 1.0, 2)

    expected = Pool()(x, rois)
    program = torch.export.export(Pool(), (x, rois))
    assert 'aminmax' not in program.graph_module.code
    for recorded in (program.module(), torch.jit.trace(Pool(), (x, rois), check_trace=False)):
        torch.testing.assert_close(recorded(x, rois), expected)
