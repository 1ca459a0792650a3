"""Guards a run against losses and gradients that are NaN or infinite."""

import functools
import math
import re
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor
from torch.optim import Optimizer

from dense.console.output import notice
from dense.engine.atomic import ATOMIC
from dense.engine.before_update import BeforeUpdate, optim_wrappers
from dense.engine.culprit import MAX_NAMED, Culprit, any_process, find_culprit, image_names, odd_losses
from dense.engine.hooks import SeededStepHook
from dense.errors import UserError

SKIPPED = 'skipped_updates'  # in the run's information, which checkpoints keep
STOP, SKIP = 'stop', re.compile(r'skip:([1-9][0-9]{0,8})')
ADVICE = 'lower the learning rate, clip gradients (optim_wrapper.clip_grad) or look at these images'


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Make no update with gradients that are not finite: stop, or leave the update out.

    The gradients are looked at just before the optimizer uses them; where they were clipped, their norm is known
    already. Only then is the step repeated to find the loss, the images and the first layer. float16's loss scaler
    leaves out updates by itself; these are no errors, unless the loss is not finite either.

    Args:
        on_nonfinite: ``'stop'``: save the state before the update as ``emergency_iter_N.pth``, and end with an error.
            ``'skip:N'``: leave out up to N updates in the whole run, counted in its checkpoints; then stop.

    Raises:
        UserError: ``on_nonfinite`` is something else.
    """

    priority = 'VERY_HIGH'

    def __init__(self, on_nonfinite: str = STOP) -> None:
        self.limit = _limit(on_nonfinite)
        self._before: BeforeUpdate | None = None
        self._batches: list[tuple[int, Any]] = []
        self._handles: list[Any] = []
        self._was_asked = False  # whether the optimizer has begun an update in this step
        self._is_left_out = False  # whether that update is left out
        self._odd: dict[str, float] = {}  # losses of the steps of this update

    def before_train(self, runner: Any) -> None:
        """Look at the gradients before each update from now on."""
        self.after_train(runner)
        self._before = BeforeUpdate(getattr(runner.model, 'module', runner.model))
        self._handles = [
            wrapper.optimizer.register_step_pre_hook(functools.partial(self._before_update, runner, wrapper))
            for wrapper in optim_wrappers(runner)
        ]

    def after_train(self, runner: Any) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what is needed to undo and to repeat the step."""
        self._was_asked = self._is_left_out = False
        if self._before is None:
            return
        if self._before.step < 0 or all(wrapper.should_update() for wrapper in optim_wrappers(runner)):
            self._before.take(runner)
            self._batches, self._odd = [], {}
        self._batches.append((runner.iter, data_batch))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the losses of the step.

        Raises:
            UserError: A loss is NaN or infinite; the message names the step, the losses and the images.
        """
        self._odd.update(odd_losses(outputs or {}))
        if self._before is not None and not all(wrapper.should_update() for wrapper in optim_wrappers(runner)):
            return  # the update is still to come
        odd, self._odd = self._odd, {}
        batches, self._batches = self._batches, []
        if self._before is not None and not self._was_asked:
            # A loss scaler has left out the update. Was it the scale, or the loss itself?
            if any_process(bool(odd)):
                self._meet(runner, batches)
        elif odd and not self._is_left_out:
            raise UserError(
                _cause(Culprit(runner.iter + 1, losses=odd, images=image_names(data_batch))), _remedy(runner, None)
            )

    def _before_update(self, runner: Any, wrapper: Any, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if getattr(optimizer, 'found_inf', None) is not None:  # a fused optimizer, to which the scaler leaves it
            return
        self._was_asked = True
        if _all_finite(wrapper, optimizer):
            return
        self._meet(runner, self._batches)
        self._is_left_out = True
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = None  # the optimizer passes over parameters without a gradient

    def _meet(self, runner: Any, batches: list[tuple[int, Any]]) -> None:
        """Say what happened, and count the update that is left out, or stop. Every process comes here."""
        assert self._before is not None
        self._before.restore_buffers()
        runner.optim_wrapper.zero_grad()
        seeding = next((hook for hook in runner.hooks if isinstance(hook, SeededStepHook)), None)
        found: list[Culprit] = all_gather_object(find_culprit(runner, batches, seeding))
        self._before.restore_buffers()
        runner.optim_wrapper.zero_grad()
        cause = _cause(max(found, key=lambda culprit: (culprit.is_found, bool(culprit.layer))))
        skipped = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        if skipped > self.limit:
            beyond = f'; {self.limit} updates have been left out before' if self.limit else ''
            raise UserError(cause + beyond, _remedy(runner, self._save(runner)))
        runner.message_hub.update_info(SKIPPED, skipped)
        notice(f'WARNING: {cause}: update left out ({skipped} of at most {self.limit})')

    def _save(self, runner: Any) -> str | None:
        """Save the state before the update; return the file."""
        assert self._before is not None
        self._before.restore_schedule(runner)
        name = f'emergency_iter_{self._before.step}.pth'
        meta = dict(epoch=runner.epoch, iter=self._before.step)
        runner.save_checkpoint(runner.work_dir, name, meta=meta, backend_args=dict(backend=ATOMIC))
        # The run ends here: whether the file is there must be known, also if it was written in the background.
        failed = [error for _, error in runner.writer.outcomes() if error is not None]
        if failed:
            notice(f'WARNING: {name} cannot be written: {failed[-1]}')
            return None
        return f'{runner.work_dir}/{name}'


def _limit(on_nonfinite: str) -> int:
    match = SKIP.fullmatch(str(on_nonfinite))
    if match is None and on_nonfinite != STOP:
        raise UserError(
            f'on_nonfinite is {on_nonfinite!r}',
            "use 'stop', or 'skip:N' to leave out up to N updates whose losses or gradients are not finite",
        )
    return int(match[1]) if match else 0


def _all_finite(wrapper: Any, optimizer: Optimizer) -> bool:
    """Tell whether the gradients of all processes are finite."""
    gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
    if not gradients:
        return not any_process(False)
    largest = _known_norm(wrapper, gradients[0])
    if largest is None:
        largest = largest_norm(gradients, 2)  # on a CPU, an eighth of the time of looking for the largest value
    if not bool(largest.isfinite()):  # a norm may overflow where no gradient does
        largest = largest_norm(gradients, math.inf)
    is_bad = (~largest.isfinite()).float()
    all_reduce(is_bad, 'max')
    return not bool(is_bad)


def _known_norm(wrapper: Any, like: Tensor) -> Tensor | None:
    """Return the norm of the gradients if clipping has just computed it."""
    if not wrapper.clip_grad_kwargs or wrapper.grad_name != 'grad_norm':
        return None
    return torch.tensor(wrapper.message_hub.get_scalar('train/grad_norm').current(), device=like.device)


def largest_norm(gradients: list[Tensor], order: float) -> Tensor:
    """Return the largest of the norms of some tensors; NaN if one holds NaN, infinite if one holds infinity.

    Args:
        gradients: Floating point tensors, at least one.
        order: 2, whose squares may overflow, or infinity: the largest absolute value.
    """
    values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    norms = torch._foreach_norm([value.detach() for value in values], order)
    return torch.stack([norm.float().to(gradients[0].device) for norm in norms]).max()


def _cause(culprit: Culprit) -> str:
    images = f'images {", ".join(culprit.images)}'
    boxes = f'; odd boxes {", ".join(culprit.boxes[:MAX_NAMED])}' if culprit.boxes else ''
    if culprit.losses:
        values = ', '.join(f'{name} {value:.4g}' for name, value in culprit.losses.items())
        layer = f'; the first output that is not finite is that of {culprit.layer}' if culprit.layer else ''
        return f'the loss of step {culprit.step} is not finite: {values}{layer}; {images}{boxes}'
    start = f'the gradients of step {culprit.step} are not finite, although its losses are'
    if culprit.layer:
        return f'{start}; going back from the loss, the first is that of {culprit.layer}; {images}{boxes}'
    return f'{start}, and a repetition of the step gave finite ones; {images}{boxes}'


def _remedy(runner: Any, emergency: str | None) -> str:
    last = runner.message_hub.runtime_info.get('last_ckpt')
    if emergency is not None:
        kept = f'the state before it is in {emergency} (--resume {emergency}); '
    else:
        kept = f'the last good checkpoint is {last}; ' if last else ''
    return f"{kept}{ADVICE}, or leave out such updates with --cfg-options on_nonfinite='skip:N'"
