"""Are the masks of point-wise spatial attention and their gradients placed as their definition says?"""

import numpy as np
import pytest
import torch

from dense.compat import extension

extension.install()

from mmcv.ops import PSAMask  # noqa: E402

DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')),
]
# Images, size of the map, size of the mask.
GEOMETRIES = {
    'whole': (2, (3, 4), (5, 7)),
    'small': (1, (5, 4), (3, 3)),
    'even': (2, (4, 4), (4, 4)),
    'beyond': (1, (2, 3), (9, 11)),
    'pixel': (1, (3, 2), (1, 1)),
    'no_image': (0, (3, 4), (5, 7)),
}
TYPES = ('collect', 'distribute')


def by_definition(masks: np.ndarray, psa_type: str, mask_size: tuple[int, int]) -> np.ndarray:
    """Write each pixel's mask around it: what it collects from, or distributes to, every other pixel."""
    num, _, height, width = masks.shape
    output = np.zeros((num, height * width, height, width), masks.dtype)
    for n, i, j, a, b in np.ndindex(num, height, width, *mask_size):
        row, column = i + a - (mask_size[0] - 1) // 2, j + b - (mask_size[1] - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            value = masks[n, a * mask_size[1] + b, i, j]
            if psa_type == 'collect':
                output[n, row * width + column, i, j] = value
            else:
                output[n, i * width + j, row, column] = value
    return output


def masks_of(name: str, dtype: torch.dtype = torch.float64, device: str = 'cpu') -> torch.Tensor:
    num, size, mask_size = GEOMETRIES[name]
    rng = torch.Generator().manual_seed(0)
    masks = torch.randn(num, mask_size[0] * mask_size[1], *size, generator=rng)
    return masks.to(device, dtype).requires_grad_()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('psa_type', TYPES)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_masks_land_where_the_definition_says(name: str, psa_type: str, device: str) -> None:
    masks = masks_of(name, device=device)
    result = PSAMask(psa_type, GEOMETRIES[name][2])(masks)
    expected = by_definition(masks.detach().cpu().numpy(), psa_type, GEOMETRIES[name][2])
    np.testing.assert_array_equal(result.detach().cpu(), expected)


@pytest.mark.parametrize('psa_type', TYPES)
@pytest.mark.parametrize('name', GEOMETRIES)
def test_gradients_come_back_from_where_the_masks_landed(name: str, psa_type: str) -> None:
    masks = masks_of(name)
    result = PSAMask(psa_type, GEOMETRIES[name][2])(masks)
    # The map is linear: <weights, f(masks)> has the gradient whose product with any other masks is <weights, f(other)>.
    weights = torch.arange(result.numel(), dtype=result.dtype).view_as(result).sin()
    result.backward(weights)
    for at, number in enumerate(masks.grad.flatten()):
        other = np.zeros(masks.numel())
        other[at] = 1
        landed = by_definition(other.reshape(masks.shape), psa_type, GEOMETRIES[name][2])
        assert number.item() == pytest.approx((landed * weights.numpy()).sum(), abs=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('psa_type', TYPES)
def test_every_dtype_is_kept(psa_type: str, dtype: torch.dtype) -> None:
    masks = masks_of('small', dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = PSAMask(psa_type, (3, 3))(masks)
    result.sum().backward()
    assert {result.dtype, masks.grad.dtype} == {dtype}
    expected = by_definition(masks.detach().double().numpy(), psa_type, (3, 3))
    np.testing.assert_array_equal(result.detach().double(), expected)
