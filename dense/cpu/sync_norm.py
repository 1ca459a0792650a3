"""Batch norm with the statistics of all processes without a GPU; PyTorch's own layer refuses to work there."""

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional


class GlooSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """The function of ``nn.SyncBatchNorm``, by operations that autograd and Gloo know; DDP refuses the class itself."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, ...) -> (N, C, ...)``, normalised in training by the mean and variance of all processes."""
        use_own = not self.training and self.running_mean is not None
        if use_own or get_world_size() == 1:
            kept = self.running_mean, self.running_var
            return functional.batch_norm(input, *kept, self.weight, self.bias, not use_own, self._momentum(), self.eps)
        dims = [0, *range(2, input.ndim)]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_tensor([x.numel() / x.shape[1]])
        total, count = all_reduce(torch.cat([x.sum(dims), count])).split([x.shape[1], 1])
        mean = total / count
        centred = x - _of_channels(mean, x)
        variance = all_reduce(centred.square().sum(dims)) / count
        self._track(mean.detach(), (variance * (count / (count - 1).clamp(min=1))).detach())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * _of_channels(scale, x)
        return (out if self.bias is None else out + _of_channels(self.bias, x)).to(input.dtype)

    def _momentum(self) -> float:
        """Count the batch in training, and return the share that it gets in the running statistics."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum or 0.0

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        momentum = self._momentum()
        if self.training and self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


def sync_by_gloo(model: nn.Module) -> None:
    """Let the ``SyncBatchNorm`` layers of a model work in several processes without a GPU, in place.

    Args:
        model: Parameters, buffers and their names stay.
    """
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):  # or that of mmcv, which only checks shapes otherwise
            module.__class__ = GlooSyncBatchNorm
