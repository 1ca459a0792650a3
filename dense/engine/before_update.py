"""Keeps what a step changes besides the weights, to undo a step whose update must not be made."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class BeforeUpdate:
    """The state of a run before the steps of an update, except for the weights, which only the update changes.

    Args:
        model: The model, without a wrapper for several processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = -1  # steps made before the update; -1 until it is taken
        self._buffers: list[Tensor] = []
        self._schedulers: list[dict[str, Any]] = []
        self._groups: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self, runner: Any) -> None:
        """Keep the state; the buffers of a whole detector are less than a megabyte.

        Args:
            runner: At the beginning of an update.
        """
        self.step = runner.iter
        buffers = list(self.model.buffers())
        if len(buffers) != len(self._buffers) or any(map(_differ, buffers, self._buffers)):
            self._buffers = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._buffers, buffers)
        # A single step changes neither before its update.
        is_gathered = len(_schedulers(runner)) > 0 and _gathers(runner)
        self._schedulers = [copy.deepcopy(one.state_dict()) for one in _schedulers(runner)] if is_gathered else []
        self._groups = [_settings(group) for group in _groups(runner)] if is_gathered else []

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what forward passes wrote into running statistics."""
        for buffer, kept in zip(self.model.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def restore_schedule(self, runner: Any) -> None:
        """Undo the scheduling of the steps of an update that several steps make together.

        Args:
            runner: Within the update.
        """
        for scheduler, state in zip(_schedulers(runner), self._schedulers, strict=False):
            scheduler.load_state_dict(state)
        for group, settings in zip(_groups(runner), self._groups, strict=False):
            group.update(settings)


def _differ(buffer: Tensor, kept: Tensor) -> bool:
    return buffer.shape != kept.shape or buffer.dtype != kept.dtype or buffer.device != kept.device


def optim_wrappers(runner: Any) -> list[Any]:
    """Return the optimizer wrappers of a run: one, or several of a dict of them.

    Args:
        runner: With its optimizer.
    """
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if hasattr(wrapper, 'optim_wrappers') else [wrapper]


def _gathers(runner: Any) -> bool:
    return any(wrapper._accumulative_counts > 1 for wrapper in optim_wrappers(runner))


def _schedulers(runner: Any) -> list[Any]:
    schedulers = runner.param_schedulers or []
    return [one for part in schedulers.values() for one in part] if isinstance(schedulers, dict) else schedulers


def _groups(runner: Any) -> list[dict[str, Any]]:
    return [group for wrapper in optim_wrappers(runner) for group in wrapper.optimizer.param_groups]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != 'params'}
