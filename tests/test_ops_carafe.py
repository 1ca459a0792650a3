"""Does CARAFE, called as models call it, do what its definition says, in bounded memory?"""

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.compat import extension
from dense.compat.ops import carafe as served

extension.install()

from mmcv.ops import CARAFE, CARAFENaive, CARAFEPack, carafe, carafe_naive  # noqa: E402
from mmcv.ops.carafe import CARAFEFunction, CARAFENaiveFunction  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
# Images, channels, size, kernel, groups, factor.
GEOMETRIES = {
    'usual': (2, 4, (3, 4), 5, 1, 2),
    'groups': (1, 6, (4, 3), 3, 3, 2),
    'pixel': (1, 2, (3, 3), 1, 1, 3),
    'same_size': (2, 3, (4, 5), 3, 1, 1),
    'kernel_beyond_map': (1, 2, (2, 1), 7, 2, 2),
    'no_image': (0, 4, (3, 4), 5, 2, 2),
}


def tensors_of(name: str, device: str = 'cpu') -> tuple[list[Tensor], tuple[int, int, int]]:
    num, channels, (height, width), kernel, groups, scale = GEOMETRIES[name]
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(num, channels, height, width, generator=rng, dtype=torch.float64)
    masks = torch.randn(num, groups * kernel**2, height * scale, width * scale, generator=rng, dtype=torch.float64)
    return [tensor.to(device).requires_grad_() for tensor in (features, masks)], (kernel, groups, scale)


def by_definition(
    x: np.ndarray, masks: np.ndarray, grad: np.ndarray, kernel: int, groups: int, scale: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk over output numbers and taps; returns the output and the gradients of features and masks."""
    num, channels, height, width = x.shape
    output, grad_x, grad_masks = np.zeros_like(grad), np.zeros_like(x), np.zeros_like(masks)
    for n, c, i, j in np.ndindex(num, channels, height * scale, width * scale):
        group = c // (channels // groups)
        for a, b in np.ndindex(kernel, kernel):
            row, column = i // scale + a - kernel // 2, j // scale + b - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                place = n, (group * kernel + a) * kernel + b, i, j
                output[n, c, i, j] += x[n, c, row, column] * masks[place]
                grad_x[n, c, row, column] += grad[n, c, i, j] * masks[place]
                grad_masks[place] += grad[n, c, i, j] * x[n, c, row, column]
    return output, grad_x, grad_masks


FUNCTIONS = {
    'carafe': carafe,
    'carafe_naive': carafe_naive,
    'CARAFE': lambda x, m, *sizes: CARAFE(*sizes)(x, m),
    'CARAFENaive': lambda x, m, *sizes: CARAFENaive(*sizes)(x, m),
    'extension': CARAFEFunction.apply,
}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('at_once', [1, served.NUMBERS_AT_ONCE])
@pytest.mark.parametrize('name', GEOMETRIES)
@pytest.mark.parametrize('function', FUNCTIONS)
def test_carafe_and_its_gradients_match_the_definition(
    function: str, name: str, at_once: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, 'NUMBERS_AT_ONCE', at_once)
    tensors, sizes = tensors_of(name, device)
    result = FUNCTIONS[function](*tensors, *sizes)
    weights = torch.arange(result.numel(), dtype=result.dtype, device=device).view_as(result).sin()
    result.backward(weights)
    arrays = [tensor.detach().cpu().numpy() for tensor in (*tensors, weights)]
    ours = result.detach(), *(tensor.grad for tensor in tensors)
    for tensor, expected in zip(ours, by_definition(*arrays, *sizes), strict=True):
        np.testing.assert_allclose(tensor.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_the_calling_convention_of_the_naive_kernel_gives_the_same() -> None:
    (x, masks), sizes = tensors_of('groups')
    extension_module = CARAFENaiveFunction.forward.__globals__['ext_module']
    names = dict(zip(('kernel_size', 'group_size', 'scale_factor'), sizes, strict=True))
    result = carafe(x, masks, *sizes)
    weights = torch.arange(result.numel(), dtype=result.dtype).view_as(result).sin()
    result.backward(weights)
    output, grads = torch.zeros_like(result), [torch.zeros_like(x), torch.zeros_like(masks)]
    with torch.no_grad():
        extension_module.carafe_naive_forward(x, masks, output, **names)
        extension_module.carafe_naive_backward(weights, x, masks, *grads, **names)
    torch.testing.assert_close([output, *grads], [result.detach(), x.grad, masks.grad])


def test_gradcheck() -> None:
    tensors, sizes = tensors_of('groups')
    assert torch.autograd.gradcheck(lambda x, m: carafe(x, m, *sizes), tensors, fast_mode=True)


def test_windows_are_made_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # 25 windows of this map have 256 * 25 * 40 * 40 numbers, ten times what is allowed at once.
    monkeypatch.setattr(served, 'NUMBERS_AT_ONCE', 1 << 20)
    make, sizes = served._windows, []

    def measured(*args: object) -> Tensor:
        windows = make(*args)
        sizes.append(windows.numel())
        return windows

    monkeypatch.setattr(served, '_windows', measured)
    x, masks = torch.randn(1, 256, 40, 40, requires_grad=True), torch.randn(1, 25, 80, 80, requires_grad=True)
    carafe(x, masks, 5, 1, 2).sum().backward()
    assert max(sizes) <= 1 << 20 and sum(sizes) == 2 * 256 * 25 * 40 * 40


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_sums_in_float32(dtype: torch.dtype) -> None:
    (x, masks), sizes = tensors_of('usual')
    x, masks = x.detach().to(dtype).requires_grad_(), masks.detach().to(dtype).requires_grad_()
    result = carafe(x, masks, *sizes)
    result.sum().backward()
    assert {result.dtype, x.grad.dtype, masks.grad.dtype} == {dtype}
    torch.testing.assert_close(result, carafe(x.float(), masks.float(), *sizes).to(dtype))


def test_the_upsampler_under_autocast() -> None:
    torch.manual_seed(0)
    upsample = CARAFEPack(8, 2)
    x = torch.randn(2, 8, 5, 6, requires_grad=True)
    exact = upsample(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = upsample(x)
    result.float().sum().backward()
    torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.05)
    assert all(torch.isfinite(parameter.grad).all() for parameter in upsample.parameters())


WRONG = {
    'kernel_size is 4': (torch.zeros(1, 2, 3, 3), torch.zeros(1, 16, 6, 6), 4, 1, 2),
    'scale_factor is 0': (torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 6, 6), 3, 1, 0),
    'features have 3 channels, group_size is 2': (torch.zeros(1, 3, 3, 3), torch.zeros(1, 18, 6, 6), 3, 2, 2),
    'masks have shape .1, 9, 6, 5.': (torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 6, 5), 3, 1, 2),
    'masks have shape .1, 8, 6, 6.': (torch.zeros(1, 2, 3, 3), torch.zeros(1, 8, 6, 6), 3, 1, 2),
}


@pytest.mark.parametrize('message', WRONG)
def test_what_does_not_fit_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        carafe(*WRONG[message])
