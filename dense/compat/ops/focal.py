"""Focal losses over sigmoid and softmax probabilities.

Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5 (https://arxiv.org/abs/1708.02002). Everything is
computed from logarithms of probabilities, so neither a loss nor a gradient overflows at large logits. There mmcv
clamps the logarithm at the smallest float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dense.compat.ops.common import vector_jacobian, without_autocast, working_dtype

REDUCTIONS = ('none', 'mean', 'sum')


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = 'mean',
) -> Tensor:
    """Compute the focal loss of each class as a yes-or-no question; replaces ``mmcv.ops.sigmoid_focal_loss``.

    Args:
        input: Logits, shape (N, C).
        target: Class of each row, shape (N,), int64; whatever is not in [0, C) is background: no class is positive.
        gamma: Focusing exponent, at least 0.
        alpha: Weight of the positive class, in [0, 1]; the negative ones get ``1 - alpha``.
        weight: Weight of a row by its target class, shape (C,); background rows get 1.
        reduction: ``'none'``, ``'mean'`` (the sum over N, not over N * C) or ``'sum'``.

    Returns:
        Shape (N, C), or a scalar; float32, or float64 for such input: a sum in half precision would overflow.

    Raises:
        ValueError: Shapes or dtypes do not fit, or ``reduction`` is unknown.
    """
    _check(input, target, weight, reduction)
    with without_autocast(input):
        logits = input.to(working_dtype(input))
        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # q = 1 - p
        positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
        loss = torch.where(
            positive, -alpha * (gamma * log_q).exp() * log_p, -(1 - alpha) * (gamma * log_p).exp() * log_q
        )
        if weight is not None:
            loss = loss * _row_weights(weight, target)[:, None]
        return _reduce(loss, reduction)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = 'mean',
) -> Tensor:
    """Compute the cross entropy, scaled down for well-classified rows; replaces ``mmcv.ops.softmax_focal_loss``.

    Args:
        input: Logits, shape (N, C).
        target: Class of each row, shape (N,), int64 below C; negative rows are ignored: their loss is 0.
        gamma: Focusing exponent, at least 0.
        alpha: Factor of the whole loss.
        weight: Weight of a row by its target class, shape (C,).
        reduction: ``'none'``, ``'mean'`` (over all N rows) or ``'sum'``.

    Returns:
        Shape (N,), or a scalar; float32, or float64 for such input.

    Raises:
        ValueError: Shapes or dtypes do not fit, or ``reduction`` is unknown.
    """
    _check(input, target, weight, reduction)
    with without_autocast(input):
        log_p = F.log_softmax(input.to(working_dtype(input)), dim=1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        # The floor keeps the gradient of a power below 1 finite where the probability rounds to 1.
        q = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        loss = torch.where(target >= 0, -alpha * q**gamma * log_p, torch.zeros_like(log_p))
        if weight is not None:
            loss = loss * _row_weights(weight, target)
        return _reduce(loss, reduction)


def _check(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    if input.dim() != 2 or target.shape != input.shape[:1] or target.dtype != torch.long:
        raise ValueError(
            f'logits of shape {tuple(input.shape)} and targets of shape {tuple(target.shape)}, {target.dtype}: '
            'allowed are (N, C) and (N,), int64\nflatten the logits to rows and give the index of a class per row'
        )
    if weight is not None and weight.shape != input.shape[1:]:
        raise ValueError(
            f'weight has shape {tuple(weight.shape)}, allowed is {tuple(input.shape[1:])}\ngive one weight per class'
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction is {reduction!r}, allowed are {", ".join(REDUCTIONS)}\nuse one of these')


def _row_weights(weight: Tensor, target: Tensor) -> Tensor:
    """Return the weight of each row's class, 1 if the target is not a class (mmcv reads beyond the weights there)."""
    is_class = (target >= 0) & (target < len(weight))
    chosen = weight[target.where(is_class, torch.zeros_like(target))]
    return torch.where(is_class, chosen, torch.ones_like(chosen))


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == 'none':
        return loss
    return loss.sum() / len(loss) if reduction == 'mean' else loss.sum()


# The calling convention of mmcv's compiled extension; an empty weight means none.


def _sigmoid_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float) -> None:
    output.copy_(sigmoid_focal_loss(input, target, gamma, alpha, weight if len(weight) else None, 'none'))


def _sigmoid_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    def loss(logits: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, target, gamma, alpha, weight if len(weight) else None, 'none')

    grad_input.copy_(vector_jacobian(loss, [input], torch.ones_like(input))[0])


def _log_of(softmax: Tensor) -> Tensor:
    """Return logits that have these probabilities; the gradient with respect to logits depends only on the latter."""
    return softmax.clamp(min=torch.finfo(softmax.dtype).tiny).log()


def _softmax_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    class_weight = weight if len(weight) else None
    output.copy_(softmax_focal_loss(_log_of(softmax), target, gamma, alpha, class_weight, 'none'))


def _softmax_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    def loss(logits: Tensor) -> Tensor:
        return softmax_focal_loss(logits, target, gamma, alpha, weight if len(weight) else None, 'none')

    grad_input.copy_(vector_jacobian(loss, [_log_of(softmax)], torch.ones_like(buff))[0])


KERNELS: dict[str, Callable] = {
    'sigmoid_focal_loss_forward': _sigmoid_forward,
    'sigmoid_focal_loss_backward': _sigmoid_backward,
    'softmax_focal_loss_forward': _softmax_forward,
    'softmax_focal_loss_backward': _softmax_backward,
}
