"""Mixed precision on any device: mmengine's own wrapper cannot be built without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from dense.errors import UserError

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@OPTIM_WRAPPERS.register_module()
class DenseAmpOptimWrapper(OptimWrapper):
    """Optimizer wrapper that trains under ``torch.autocast`` on the device where the parameters are.

    float16 needs its loss scaled to keep small gradients; bfloat16 has float32's range and is not scaled.
    Checkpoints of ``AmpOptimWrapper`` and of the plain ``OptimWrapper`` can be resumed with this one, and vice
    versa.

    Args:
        optimizer: Its parameters are already on the training device.
        dtype: ``'bfloat16'``, ``'float16'``, or None: float16 on CUDA, as in the published recipes, bfloat16 elsewhere.
        loss_scale: For float16: ``'dynamic'``, or a fixed number.
        accumulative_counts: Number of iterations whose gradients make one step.
        clip_grad: Arguments of ``torch.nn.utils.clip_grad_norm_``; see ``OptimWrapper``.

    Raises:
        UserError: Unknown dtype, or float16 where there is no CUDA.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        dtype: str | None = None,
        loss_scale: float | str = 'dynamic',
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts=accumulative_counts, clip_grad=clip_grad)
        self.device_type = optimizer.param_groups[0]['params'][0].device.type
        self.cast_dtype = _checked_dtype(dtype, self.device_type)
        self.fixed_scale = None if loss_scale == 'dynamic' else float(loss_scale)
        init_scale = 2.0**16 if self.fixed_scale is None else self.fixed_scale
        is_scaled = self.cast_dtype is torch.float16
        self.loss_scaler = torch.amp.GradScaler(self.device_type, init_scale=init_scale, enabled=is_scaled)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of ``model`` in mixed precision.

        Args:
            model: The model, or its distributed wrapper.
        """
        with super().optim_context(model), torch.autocast(self.device_type, dtype=self.cast_dtype):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Back-propagate the scaled loss.

        Args:
            loss: Scalar.
            **kwargs: Arguments of ``Tensor.backward``.
        """
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Unscale, clip, and update the parameters; skipped by the scaler where a gradient overflowed.

        Args:
            **kwargs: Arguments of the optimizer's ``step``.
        """
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self.fixed_scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, and the scaler's under the key ``loss_scaler`` (empty if nothing is scaled)."""
        return {**super().state_dict(), 'loss_scaler': self.loss_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a missing or empty scaler state leaves the scaler as built.

        Args:
            state_dict: The state; not changed.
        """
        rest = dict(state_dict)
        scaler_state = rest.pop('loss_scaler', None)
        if scaler_state and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler_state)
        super().load_state_dict(rest)


def _checked_dtype(name: str | None, device_type: str) -> torch.dtype:
    if name is None:
        return torch.float16 if device_type == 'cuda' else torch.bfloat16
    if name not in DTYPES:
        raise UserError(f'unknown dtype {name!r} for mixed precision', f'use one of {", ".join(sorted(DTYPES))}')
    if name == 'float16' and device_type != 'cuda':
        raise UserError(f'float16 training needs CUDA, but the model is on {device_type}', 'use dtype bfloat16')
    return DTYPES[name]
