"""Do the focal losses, called as models call them, follow their equation?"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.compat import extension

extension.install()

from mmcv.ops import SigmoidFocalLoss, SoftmaxFocalLoss, sigmoid_focal_loss, softmax_focal_loss  # noqa: E402
from mmcv.ops.focal_loss import SigmoidFocalLossFunction, SoftmaxFocalLossFunction  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
REDUCTIONS = ('none', 'mean', 'sum')
CASES = [
    (kind, gamma, alpha, weighted, reduction)
    for kind in ('sigmoid', 'softmax')
    for gamma in (0.0, 0.5, 2.0)
    for alpha in (0.25, 1.0)
    for weighted in (False, True)
    for reduction in REDUCTIONS
]


def inputs_of(kind: str, rows: int = 7, device: str = 'cpu') -> tuple[Tensor, Tensor]:
    """Return float64 logits (N, 4) and targets (N,), the last of which is background (or ignored, for softmax)."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 4, generator=rng, dtype=torch.float64) * 3
    targets = torch.arange(rows) % 4
    targets[-1:] = 4 if kind == 'sigmoid' else -1
    return logits.to(device).requires_grad_(), targets.to(device)


def focal_by_definition(
    kind: str, logits: np.ndarray, targets: np.ndarray, gamma: float, alpha: float, weight: list | None
) -> np.ndarray:
    """Equation 5 with alpha, one probability at a time."""
    rows, classes = logits.shape
    result = np.zeros((rows, classes) if kind == 'sigmoid' else rows)
    for n, target in enumerate(targets):
        factor = 1.0 if weight is None or not 0 <= target < classes else weight[target]
        if kind == 'sigmoid':
            for c in range(classes):
                p = 1 / (1 + math.exp(-logits[n, c]))
                if c == target:
                    result[n, c] = -factor * alpha * (1 - p) ** gamma * math.log(p)
                else:
                    result[n, c] = -factor * (1 - alpha) * p**gamma * math.log(1 - p)
        elif target >= 0:
            p = math.exp(logits[n, target]) / sum(math.exp(value) for value in logits[n])
            result[n] = -factor * alpha * (1 - p) ** gamma * math.log(p)
    return result


def call(kind: str, through_kernels: bool = False):
    if through_kernels:
        return (SigmoidFocalLossFunction if kind == 'sigmoid' else SoftmaxFocalLossFunction).apply
    return sigmoid_focal_loss if kind == 'sigmoid' else softmax_focal_loss


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('kind', 'gamma', 'alpha', 'weighted', 'reduction'), CASES)
def test_focal_loss_matches_the_definition(
    kind: str, gamma: float, alpha: float, weighted: bool, reduction: str, device: str
) -> None:
    logits, targets = inputs_of(kind, device=device)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64, device=device) if weighted else None
    module = (SigmoidFocalLoss if kind == 'sigmoid' else SoftmaxFocalLoss)(gamma, alpha, weight, reduction)
    expected = focal_by_definition(
        kind, logits.detach().cpu().numpy(), targets.tolist(), gamma, alpha, weight.tolist() if weighted else None
    )
    if reduction != 'none':
        expected = expected.sum() / (len(targets) if reduction == 'mean' else 1)
    np.testing.assert_allclose(module(logits, targets).detach().cpu(), expected, rtol=1e-9)


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_gradcheck(kind: str, gamma: float, reduction: str) -> None:
    logits, targets = inputs_of(kind)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return call(kind)(x, targets, gamma, 0.25, weight, reduction)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('gamma', [0.0, 2.0])
@pytest.mark.parametrize('weighted', [False, True])
def test_calling_convention_of_the_extension_gives_the_same(kind: str, gamma: float, weighted: bool) -> None:
    results = []
    for through_kernels in (False, True):
        logits, targets = inputs_of(kind)
        if kind == 'sigmoid' and weighted:
            logits, targets = logits[:-1].detach().requires_grad_(), targets[:-1]
        weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
        loss = call(kind, through_kernels)(logits, targets, gamma, 0.25, weight, 'mean')
        loss.backward()
        results.append([loss.detach(), logits.grad])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('size', [30.0, 100.0, 1000.0])
def test_large_logits_give_finite_losses_and_gradients(kind: str, gamma: float, size: float) -> None:
    logits = torch.tensor([[size, -size], [-size, size]], requires_grad=True)
    loss = call(kind)(logits, torch.tensor([0, 0]), gamma, 0.25, None, 'none')
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    missed = loss[1, 0] if kind == 'sigmoid' else loss[1]
    assert missed.item() == pytest.approx(0.25 * (size if kind == 'sigmoid' else 2 * size), rel=1e-5)


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(kind: str, dtype: torch.dtype) -> None:
    logits = torch.full((3000, 40), 20.0, dtype=dtype, requires_grad=True)  # a sum beyond what float16 holds
    targets = torch.full((3000,), 40 if kind == 'sigmoid' else 1)
    with torch.autocast('cpu', dtype=dtype):
        loss = call(kind)(logits, targets, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_no_row_gives_nothing(kind: str) -> None:
    logits, targets = inputs_of(kind, rows=0)
    loss = call(kind)(logits, targets, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 4)


WRONG = [
    (torch.zeros(3), torch.zeros(3, dtype=torch.long), None, 'mean', 'logits of shape'),
    (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), None, 'mean', 'logits of shape'),
    (torch.zeros(3, 2), torch.zeros(3), None, 'mean', 'int64'),
    (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.ones(3), 'mean', 'weight has shape'),
    (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), None, 'median', "reduction is 'median'"),
]


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
@pytest.mark.parametrize(('logits', 'targets', 'weight', 'reduction', 'message'), WRONG)
def test_a_wrong_input_is_named(kind: str, logits, targets, weight, reduction: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(kind)(logits, targets, 2.0, 0.25, weight, reduction)
