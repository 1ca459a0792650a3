"""The learning rate of timm's training script, which InceptionNeXt and its ConvNeXt variants were trained with."""

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class TimmCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up, then a cosine that starts with the run, not after the warm-up; constant within an epoch.

    In epoch t of T, with w epochs of warm-up:
    ``warmup_lr + (lr - warmup_lr) * t / w`` for t < w, else
    ``min_lr + (lr - min_lr) * (1 + cos(pi * t / T)) / 2``.
    MMEngine's ``CosineAnnealingLR`` after a ``LinearLR`` would start at the full rate in epoch w, and be 10 % higher
    half-way.

    Args:
        optimizer: The optimizer or its wrapper.
        end: T.
        warmup: w, less than T.
        warmup_lr: Rate of the first epoch, if there is a warm-up.
        min_lr: Rate at the end of the cosine.
        last_step: The last step taken before a resume; used by MMEngine.
        by_epoch: Whether steps are epochs.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        end: int,
        warmup: int = 0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        last_step: int = -1,
        by_epoch: bool = True,
    ) -> None:
        if not 0 <= warmup < end:
            raise ValueError(f'warmup={warmup}, allowed are 0 to below end={end}.\nShorten the warm-up.')
        self.warmup = warmup
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        super().__init__(optimizer, begin=0, end=end, last_step=last_step, by_epoch=by_epoch)

    def _get_value(self) -> list[float]:
        step = self.last_step
        if step < self.warmup:
            return [self.warmup_lr + (lr - self.warmup_lr) * step / self.warmup for lr in self.base_values]
        share = (1 + math.cos(math.pi * step / self.end)) / 2
        return [self.min_lr + (lr - self.min_lr) * share for lr in self.base_values]
