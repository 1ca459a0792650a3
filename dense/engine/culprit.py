"""Finds out why a step's losses or gradients are not finite, by repeating the step and watching every layer.

It runs only after the fact, so watching costs nothing before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from dense.engine.before_update import optim_wrappers

MAX_NAMED = 4
FAR = 1.0  # pixels outside the image from which a box is named


@dataclass
class Culprit:
    """What the repetition of a step showed in one process.

    Attributes:
        step: Number of the step, from 1.
        losses: Losses that are not finite, by name; empty if only gradients are not.
        layer: First layer whose output is not finite, or, going back from the loss, first one whose gradient is not.
        images: File names of the process's images.
        boxes: Boxes that cannot be right.
    """

    step: int
    losses: dict[str, float] = field(default_factory=dict)
    layer: str = ''
    images: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)

    @property
    def is_found(self) -> bool:
        """Whether the repetition showed anything."""
        return bool(self.losses or self.layer)


def any_process(flag: bool) -> bool:
    """Tell whether a flag is set in any process; every process must ask."""
    value = torch.tensor(float(flag))
    all_reduce(value, 'max')
    return bool(value > 0)


def find_culprit(runner: Any, batches: Sequence[tuple[int, Any]], seeding: Any) -> Culprit:
    """Repeat the steps of an update until one shows values that are not finite. Every process must call it.

    Args:
        runner: Its weights are those before the update. Running statistics and gradients are not kept.
        batches: Number of each step, from 0, and its batch.
        seeding: Hook that seeds a step, or None.
    """
    loop, present = runner.train_loop, runner.iter
    culprit = Culprit(present + 1)
    try:
        for step, batch in batches:
            loop._iter = step
            if seeding is not None:
                seeding.before_train_iter(runner, step, batch)
            culprit = Culprit(step + 1, images=image_names(batch), boxes=odd_boxes(batch))
            _repeat(runner, batch, culprit)
            if any_process(culprit.is_found):
                break
    finally:
        loop._iter = present
    return culprit


def _repeat(runner: Any, batch: Any, culprit: Culprit) -> None:
    model = getattr(runner.model, 'module', runner.model)
    wrapper = optim_wrappers(runner)[0]
    with _watched(model) as seen:
        with wrapper.optim_context(model):
            losses = model._run_forward(model.data_preprocessor(batch, True), mode='loss')
        total, values = model.parse_losses(losses)
        culprit.losses = odd_losses(values)
        # The processes must agree: normalisation over all of them exchanges gradients, too.
        if any_process(bool(culprit.losses)):
            culprit.layer = seen.output if culprit.losses else ''
        else:
            total.backward()
            culprit.layer = seen.gradient


class _Seen:
    """Names of the first layers with an output, and with a gradient, that is not finite."""

    output = ''
    gradient = ''

    def see_output(self, name: str, output: Any) -> None:
        for tensor in _tensors(output):
            if not self.output and not _is_finite(tensor):
                self.output = name
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self.see_gradient(name, gradient))

    def see_gradient(self, name: str, gradient: Tensor) -> None:
        if not self.gradient and not _is_finite(gradient):
            self.gradient = name


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    seen = _Seen()
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.see_output(name, output))
        for name, module in model.named_modules()
        if name
    ]
    handles += [
        parameter.register_hook(lambda gradient, name=name: seen.see_gradient(name, gradient))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())


def odd_losses(values: dict[str, Any]) -> dict[str, float]:
    """Return the losses of a step that are not finite.

    Args:
        values: What the step logs: name -> number or tensor. Only names with ``loss`` in them are losses.
    """
    losses = {name: value for name, value in values.items() if 'loss' in name}
    means = [torch.as_tensor(value).detach().float().mean() for value in losses.values()]
    if not means or bool(torch.stack(means).isfinite().all()):
        return {}
    return {name: float(mean) for name, mean in zip(losses, means, strict=True) if not bool(mean.isfinite())}


def image_names(data_batch: Any) -> list[str]:
    """Return the file names of a batch's images, as far as they are known."""
    return [Path(name).name for _, name in _samples(data_batch) if name] or ['unknown']


def odd_boxes(data_batch: Any) -> list[str]:
    """Describe the boxes of a batch that are not finite, have no area, or reach out of their image.

    Args:
        data_batch: As the loader gives it; boxes are x1, y1, x2, y2 in the augmented image.
    """
    found = []
    for sample, name in _samples(data_batch):
        boxes = getattr(getattr(sample, 'gt_instances', None), 'bboxes', None)
        boxes = getattr(boxes, 'tensor', boxes)
        if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
            continue
        height, width = (getattr(sample, 'metainfo', None) or {}).get('img_shape', (float('inf'), float('inf')))[:2]
        most = torch.tensor([width, height, width, height]) + FAR
        boxes = boxes.detach().cpu().float()
        is_good = ((boxes >= -FAR) & (boxes <= most)).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        found += [
            f'[{", ".join(f"{v:.5g}" for v in box)}] of {Path(name or "?").name}' for box in boxes[~is_good].tolist()
        ]
    return found


def _samples(data_batch: Any) -> Iterator[tuple[Any, str | None]]:
    samples = data_batch.get('data_samples', []) if isinstance(data_batch, dict) else []
    for sample in samples if isinstance(samples, list | tuple) else []:
        yield sample, getattr(sample, 'img_path', None)
