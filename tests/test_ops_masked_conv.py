"""Is the masked convolution the ordinary one at the marked pixels, and 0 elsewhere?"""

import pytest
import torch
import torch.nn.functional as F

from dense.compat import extension

extension.install()

from mmcv.ops import MaskedConv2d  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
# Kernel and padding that keep the size.
KERNELS = {'pixel': ((1, 1), (0, 0)), 'square': ((3, 3), (1, 1)), 'flat': ((1, 5), (0, 2)), 'tall': ((5, 3), (2, 1))}
MASKS = {
    'none': lambda shape: torch.zeros(shape),
    'all': lambda shape: torch.ones(shape),
    'some': lambda shape: torch.randn(shape, generator=torch.Generator().manual_seed(1)),  # marked where above 0
    'bool': lambda shape: torch.randn(shape, generator=torch.Generator().manual_seed(2)) > 1,
}


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('kernel', KERNELS)
def test_marked_pixels_are_those_of_a_convolution(kernel: str, mask: str, device: str) -> None:
    torch.manual_seed(0)
    size, padding = KERNELS[kernel]
    conv = MaskedConv2d(3, 4, size, padding=padding).to(device, torch.float64)
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64, device=device)
    marked = MASKS[mask]((1, 6, 7)).to(device)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=padding) * (marked > 0)
    torch.testing.assert_close(conv(x, marked), expected)


def test_without_a_mask_it_is_the_ordinary_convolution() -> None:
    conv, x = MaskedConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_it_has_no_gradient_as_in_mmcv() -> None:
    conv, x = MaskedConv2d(3, 4, 3, padding=1), torch.randn(1, 3, 6, 7, requires_grad=True)
    conv(x, torch.ones(1, 6, 7)).sum().backward()
    assert x.grad is None and conv.weight.grad is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_it_runs_under_autocast_and_keeps_the_features_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, x = MaskedConv2d(3, 4, 3, padding=1), torch.randn(1, 3, 6, 7)
    exact = conv(x, torch.ones(1, 6, 7))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = conv(x.to(dtype), torch.ones(1, 6, 7))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.05)
