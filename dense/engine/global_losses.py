"""Losses averaged over the global batch, not over the samples of each process.

Heads divide a loss by a number that they count in their own process: positive anchors, sampled regions, objects with a
mask. DDP then averages the gradients of all W processes, so that an object weighs more where there are few. With own
count c_r and mean L_r = S_r / c_r, the mean of the global batch, sum S_r / sum c_r, is the mean over the processes of
L_r * W * c_r / sum c_r: each process scales its losses by its own count over the mean count.
"""

from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from torch import Tensor, nn

from dense.errors import UserError

_DEPTH = 4  # operations between a loss and the dict that its head returns, such as a weight


class GlobalLosses:
    """Scales the losses of a model by this process's share of what they count, and shows every process the mean.

    What a loss counts is the ``avg_factor`` that its head hands over, or else the rows of its first argument. Counts
    that a head has already averaged over the processes are the same everywhere and change nothing.

    Args:
        model: Its modules below an attribute ``loss...`` are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, module) for name, module in model.named_modules() if '.loss' in f'.{name}']
        self._number = len(named)
        self._counts: dict[int, tuple[float, float, float]] = {}  # count, 1, and 1 if it is an avg_factor
        self._names: list[str] | None = None
        for place, (_, module) in enumerate(named):
            module.register_forward_hook(self._counter(place), with_kwargs=True)
        model.register_forward_hook(self._after_forward, with_kwargs=True)

    def _counter(self, place: int) -> Any:
        def count(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or output.numel() != 1 or not torch.is_grad_enabled():
                return None
            factor = kwargs.get('avg_factor')
            number = len(args[0] if args else next(iter(kwargs.values()))) if factor is None else float(factor)
            # Called for several levels, it counts the same each time, or parts of a whole: sums serve both.
            self._counts[place] = (self._counts.get(place, (0.0,))[0] + number, 1.0, float(factor is not None))
            return _Marked.apply(output, place)

        return count

    def _after_forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if kwargs.get('mode') != 'loss' or not torch.is_grad_enabled():
            return None
        flat = [(name, loss) for name, values in output.items() for loss in _as_list(values)]
        self._check([name for name, _ in flat])
        losses = self._scale([loss for _, loss in flat])
        own = torch.stack([loss.detach().to(_precise(losses[0].dtype)).mean() for loss in losses])
        means = all_reduced(own) / get_world_size()
        # The value of the global batch, the gradient of this process's part of it.
        shown = iter([loss + (mean - loss.mean()).detach() for loss, mean in zip(losses, means, strict=True)])
        return {
            name: [next(shown) for _ in values] if isinstance(values, list) else next(shown)
            for name, values in output.items()
        }

    def _scale(self, losses: list[Tensor]) -> list[Tensor]:
        table = [self._counts.get(place, (0.0, 0.0, 0.0)) for place in range(self._number)]
        self._counts.clear()
        if not table:
            return losses
        own = torch.tensor(table, dtype=_precise(losses[0].dtype)).to(losses[0].device)
        count, called, by_factor = all_reduced(own).unbind(1)
        # A head without positive samples leaves losses out. Where it divides by rows, it has none of them. A factor,
        # such as the number of sampled regions, it would have had like the others.
        processes = torch.where(by_factor > 0, called, get_world_size())
        scales = own[:, 0] * processes / count.clamp(min=torch.finfo(count.dtype).tiny)
        places = [_place_of(loss) for loss in losses]
        return [loss if place is None else loss * scales[place] for loss, place in zip(losses, places, strict=True)]

    def _check(self, names: list[str]) -> None:
        """Find losses that only some processes have: their sums would mix different losses, or never end.

        Raises:
            UserError: There are some.
        """
        if self._names is None:
            self._names = names
            others = all_gather_object(names)
            names = next((other for other in others if other != names), names)
        if names != self._names:
            differing = sorted(set(names) ^ set(self._names)) or names
            raise UserError(
                f'the losses {", ".join(differing)} exist only in some processes or some steps',
                'let the model return every loss in every step, zero where there is nothing to learn from',
            )


def all_reduced(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    total = values.clone()
    all_reduce(total)
    return total


class _Marked(torch.autograd.Function):
    """The same loss, with the place of the module that computed it in the graph."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, place: int) -> Tensor:
        ctx.loss_place = place
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _as_list(values: Any) -> list[Tensor]:
    return values if isinstance(values, list) else [values]


def _place_of(loss: Tensor) -> int | None:
    """Return the place of the module that computed a loss; None if there is none, or several."""
    nodes = [loss.grad_fn]
    for _ in range(_DEPTH):
        places = {node.loss_place for node in nodes if hasattr(node, 'loss_place')}
        if places:
            return places.pop() if len(places) == 1 else None
        nodes = [parent for node in nodes if node is not None for parent, _ in node.next_functions]
    return None
