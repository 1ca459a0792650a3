"""Batches of one size in all processes of a training step."""

from mmengine.dist import all_reduce, get_world_size
from mmengine.model import utils
from torch import Tensor, is_grad_enabled, tensor
from torch.nn import functional

from dense.compat.rebind import rebind

_stack_own = utils.stack_batch


def pad_alike() -> None:
    """Let MMEngine's preprocessors pad the images of a training step to the largest of all processes.

    One process would pad the whole global batch to one size, and the padding reaches into the maps: convolutions see it
    at the borders, and norms average over it. The time of a step changes little, since all wait for the process with
    the largest images anyway.
    """
    rebind(utils, 'stack_batch', stack_alike)


def stack_alike(tensor_list: list[Tensor], pad_size_divisor: int = 1, pad_value: float = 0) -> Tensor:
    """Stack images, in training padded to the largest of all processes.

    Args:
        tensor_list: Images ``(C, H, W)`` of any sizes.
        pad_size_divisor: The size of the result is a multiple of it.
        pad_value: Value of the padding.

    Returns:
        Shape (N, C, H', W').
    """
    if get_world_size() > 1 and is_grad_enabled():
        sizes = tensor([image.shape[1:] for image in tensor_list], device=tensor_list[0].device).amax(0)
        all_reduce(sizes, 'max')
        (height, width), first = sizes.tolist(), tensor_list[0]
        padding = (0, width - first.shape[2], 0, height - first.shape[1])
        tensor_list = [functional.pad(first, padding, value=pad_value), *tensor_list[1:]]
    return _stack_own(tensor_list, pad_size_divisor, pad_value)
