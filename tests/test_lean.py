"""Does the lean MLP compute what the plain one computes, and does it hold less?"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backbones import lean
from backbones.lean import lean_mlp

LAYERS = {'linear': lambda i, o: nn.Linear(i, o), 'convolution': lambda i, o: nn.Conv2d(i, o, 1)}


def plain_mlp(x, fc1, fc2, gamma):
    hidden = torch.einsum('nchw,dc->nhwd', x, fc1.weight.flatten(1)) + fc1.bias
    out = torch.einsum('nhwd,cd->nchw', F.gelu(hidden), fc2.weight.flatten(1)) + fc2.bias.view(-1, 1, 1)
    return out if gamma is None else out * gamma.view(-1, 1, 1)


def parts(layer, dtype=torch.float32, with_gamma=True):
    torch.manual_seed(0)
    fc1, fc2 = LAYERS[layer](8, 32).to(dtype), LAYERS[layer](32, 8).to(dtype)
    gamma = nn.Parameter(torch.rand(8, dtype=dtype) + 0.5) if with_gamma else None
    return fc1, fc2, gamma


@pytest.fixture(params=[1, 17, 10**6], ids=lambda rows: f'{rows} rows')
def rows_at_a_time(request, monkeypatch):
    slices = lambda rows, weight: [slice(i, i + request.param) for i in range(0, len(rows), request.param)]  # noqa: E731
    monkeypatch.setattr(lean, '_parts', slices)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('with_gamma', [True, False])
def test_output_and_gradients(layer, with_gamma, rows_at_a_time):
    fc1, fc2, gamma = parts(layer, torch.float64, with_gamma)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *fc1.parameters(), *fc2.parameters(), *([gamma] if with_gamma else [])]
    out, expected = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma), plain_mlp(x, fc1, fc2, gamma)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    got, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (out, expected))
    assert len(got) == 5 + with_gamma
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    fc1, fc2, gamma = parts('linear', torch.float64)
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: lean_mlp(y, fc1=fc1, fc2=fc2, gamma=gamma), (x,))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_in_and_out(memory_format):
    fc1, fc2, gamma = parts('convolution')
    x = torch.randn(2, 8, 6, 4).to(memory_format=memory_format)
    out = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, plain_mlp(x, fc1, fc2, gamma))


def test_mixed_precision():
    fc1, fc2, gamma = parts('linear')
    x = torch.randn(2, 8, 6, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma)
        out.float().square().mean().backward()
    assert out.dtype is torch.bfloat16
    assert fc1.weight.grad.dtype is gamma.grad.dtype is torch.float32
    torch.testing.assert_close(out.float(), plain_mlp(x, fc1, fc2, gamma), rtol=0.05, atol=0.02)


def test_hidden_values_are_not_kept():
    fc1, fc2, gamma = parts('linear')
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        lean_mlp(x, fc1=fc1, fc2=fc2, gamma=gamma)
    weights = sum(p.numel() for layer in (fc1, fc2) for p in layer.parameters()) + gamma.numel()
    assert sum(kept) == x.numel() + weights
