"""Stores the gradients gathered so far in checkpoints between two updates."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS

from dense.errors import UserError

KEY = 'accumulation'


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Store and restore the gradients of an incomplete update, so that a run can stop between two updates.

    With ``accumulative_counts`` above 1 several steps make one update. A checkpoint within an update holds the
    gradients of its earlier steps, for each process, under the key ``accumulation``; one at its end holds none.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the gradients of all processes."""
        if 'optimizer' in checkpoint and runner.open_update is not None:
            checkpoint[KEY] = runner.open_update

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the gradients until the optimizer is restored, too."""
        self._states = checkpoint.pop(KEY, None)

    def before_train(self, runner: Any) -> None:
        """Restore the gradients.

        Raises:
            UserError: The checkpoint does not hold them, or holds those of other settings.
        """
        states, self._states = self._states, None
        if runner.iter == 0:
            return
        if states is None:
            _check_no_update_is_open(runner)
        else:
            # In another number of processes each gets the mean: what counts is the mean over all processes at the end.
            state = states[get_rank()] if len(states) == get_world_size() else _mean(states)
            for name, wrapper in _wrappers(runner):
                _restore(runner, wrapper, state.get(name))


def gather_open_update(runner: Any) -> list[dict[str, Any]] | None:
    """Return what each process has gathered for an incomplete update. Every process must call it.

    Args:
        runner: With its optimizer.

    Returns:
        One state for each process; None between two steps that do not share an update, and in all but the main process.
    """
    if all(wrapper.should_update() for _, wrapper in _wrappers(runner)):
        return None
    return gather_object({name: _state(wrapper) for name, wrapper in _wrappers(runner)})


def _wrappers(runner: Any) -> Iterator[tuple[str, OptimWrapper]]:
    wrapper = runner.optim_wrapper
    yield from wrapper.items() if isinstance(wrapper, OptimWrapperDict) else [('', wrapper)]


def _parameters(wrapper: OptimWrapper) -> list[torch.Tensor]:
    return [parameter for group in wrapper.optimizer.param_groups for parameter in group['params']]


def _state(wrapper: OptimWrapper) -> dict[str, Any]:
    gradients = {place: tensor.grad for place, tensor in enumerate(_parameters(wrapper)) if tensor.grad is not None}
    return dict(
        counts=wrapper._accumulative_counts,
        done=wrapper.inner_count,
        gradients={place: gradient.detach().cpu().clone() for place, gradient in gradients.items()},
    )


def _mean(states: list[dict[str, Any]]) -> dict[str, Any]:
    mean = {name: dict(state, gradients={}) for name, state in states[0].items()}
    for name, state in mean.items():
        each = [other[name]['gradients'] for other in states]
        for place in each[0]:
            state['gradients'][place] = torch.stack([gradients[place] for gradients in each]).mean(0)
    return mean


def _restore(runner: Any, wrapper: OptimWrapper, state: dict[str, Any] | None) -> None:
    if state is None:
        raise _other_setting(runner, 'optimizers', 'other', 'these')
    if state['counts'] != wrapper._accumulative_counts:
        raise _other_setting(runner, 'accumulative_counts', state['counts'], wrapper._accumulative_counts)
    wrapper._inner_count = state['done']
    parameters = _parameters(wrapper)
    for place, gradient in state['gradients'].items():
        parameters[place].grad = gradient.to(parameters[place].device)


def _check_no_update_is_open(runner: Any) -> None:
    for _, wrapper in _wrappers(runner):
        counts = wrapper._accumulative_counts
        # Several optimizers each keep their own count, and report nothing before their first step.
        if runner.iter % counts != 0 and runner.iter < runner.max_iters:
            raise UserError(
                f'the checkpoint was saved after {runner.iter} steps, inside an update of {counts}, without the '
                'gradients gathered so far',
                f'resume from a checkpoint after a multiple of {counts} steps, or start a new run from its weights '
                'with --load-from',
            )


def _other_setting(runner: Any, what: str, saved: Any, present: Any) -> UserError:
    return UserError(
        f'the checkpoint was saved after {runner.iter} steps, between two updates, with {saved} {what}; this run has '
        f'{present} {what}',
        'continue with the settings that it was saved with, or resume from a checkpoint at the end of an update',
    )
