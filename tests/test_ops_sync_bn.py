"""Does mmcv's synchronised batch norm, in one process and in two, equal batch norm over all images?"""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dense.compat import extension

extension.install()

from mmcv.ops import SyncBatchNorm  # noqa: E402


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{free_port()}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def norms() -> tuple[nn.Module, nn.Module]:
    """Return mmcv's layer and PyTorch's, with equal parameters."""
    torch.manual_seed(0)
    ours, reference = SyncBatchNorm(3), nn.BatchNorm2d(3)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def results(norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    output = norm(leaf)
    (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    return [output.detach(), leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize('training', [True, False])
def test_one_process_equals_batch_norm(training: bool) -> None:
    ours, reference = norms()
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
    torch.testing.assert_close(results(ours.train(training), x), results(reference.train(training), x))


@pytest.mark.usefixtures('one_process')
@pytest.mark.parametrize('mode', ['default', 'N'])
def test_no_image_changes_no_statistics(mode: str) -> None:
    norm = SyncBatchNorm(3, stats_mode=mode)
    before = norm.running_var.clone()
    x = torch.zeros(0, 3, 5, 6, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == x.shape and norm.weight.grad.tolist() == [0, 0, 0]
    if mode == 'N':
        assert torch.equal(norm.running_var, before)


@pytest.mark.usefixtures('one_process')
def test_half_precision_is_summed_in_float32() -> None:
    ours, _ = norms()
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    exact = ours(x)
    result = ours(x.half())
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), exact, rtol=0.01, atol=0.01)


class Sum:
    """Sums a tensor over two threads, as ``all_reduce`` does over two processes."""

    def __init__(self) -> None:
        self.barrier, self.parts = threading.Barrier(2), []

    def __call__(self, tensor: torch.Tensor, group: object = None) -> None:
        self.parts.append(tensor.clone())
        self.barrier.wait(30)
        total = self.parts[0] + self.parts[1]
        if self.barrier.wait(30) == 0:
            self.parts.clear()
        self.barrier.wait(30)
        tensor.copy_(total)


@pytest.mark.usefixtures('one_process')
def test_two_processes_equal_batch_norm_over_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, 'all_reduce', Sum())
    monkeypatch.setattr(dist, 'get_world_size', lambda group=None: 2)
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
    weights = torch.arange(x.numel()).view_as(x).sin()
    layers = [norms()[0] for _ in range(2)]
    leaf = x.clone().requires_grad_()
    reference = norms()[1]
    expected = reference(leaf)
    (expected * weights).sum().backward()

    def half(rank: int) -> list[torch.Tensor]:
        own = x.chunk(2)[rank].clone().requires_grad_()
        output = layers[rank](own)
        (output * weights.chunk(2)[rank]).sum().backward()
        return [output.detach(), own.grad, layers[rank].running_mean, layers[rank].running_var]

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(half, range(2)))
    for rank, found in enumerate(halves):
        wanted = [tensor.chunk(2)[rank] for tensor in (expected.detach(), leaf.grad)]
        torch.testing.assert_close(found, [*wanted, reference.running_mean, reference.running_var])
