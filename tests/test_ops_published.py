"""Do the served ops give the numbers that mmcv's own unit tests expect of its compiled ones?"""

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.compat import extension

extension.install()

from mmcv.ops import (  # noqa: E402
    CARAFE,
    CARAFENaive,
    DeformConv2d,
    DeformConv2dPack,
    DeformRoIPoolPack,
    ModulatedDeformConv2dPack,
    ModulatedDeformRoIPoolPack,
    MultiScaleDeformableAttention,
    bbox_overlaps,
    nms,
    nms_match,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
    soft_nms,
    softmax_focal_loss,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def assert_close(actual: Tensor, expected: list | float | np.ndarray, dtype: torch.dtype = torch.float32) -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(actual.detach().double(), np.array(expected), rtol=tolerance, atol=tolerance)


# Maps, and a region that ends at the centre of the last pixel.
MAPS = {
    'one': ([[[[1.0, 2.0], [3.0, 4.0]]]], [[0.0, 0.0, 0.0, 1.0, 1.0]]),
    'two': ([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]], [[0.0, 0.0, 0.0, 1.0, 1.0]]),
    'large': (
        [[[[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0], [9.0, 10.0, 13.0, 14.0], [11.0, 12.0, 15.0, 16.0]]]],
        [[0.0, 0.0, 0.0, 3.0, 3.0]],
    ),
}
SMALL_GRAD = [[3.0625, 0.4375], [0.4375, 0.0625]]
# Pooled values and the gradient of their sum.
ALIGNED = {
    'one': ([[[[1.0, 1.25], [1.5, 1.75]]]], [[SMALL_GRAD]]),
    'two': ([[[[1.0, 1.25], [1.5, 1.75]], [[4.0, 3.75], [3.5, 3.25]]]], [[SMALL_GRAD, SMALL_GRAD]]),
    'large': (
        [[[[1.9375, 4.75], [7.5625, 10.375]]]],
        [[np.outer([0.6875, 0.625, 0.625, 0.0625], [0.6875, 0.625, 0.625, 0.0625])]],
    ),
}
POOLED = {
    'one': ([[[[1.0, 2.0], [3.0, 4.0]]]], [[[[1.0, 1.0], [1.0, 1.0]]]]),
    'two': ([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 3.0], [2.0, 1.0]]]], [[[[1.0, 1.0], [1.0, 1.0]]] * 2]),
    'large': ([[[[4.0, 8.0], [12.0, 16.0]]]], [[[[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]]]),
}


def deform_pool(layer: type):
    """Return a pooling by a fresh layer, whose bins do not move; the modulated one halves everything."""

    def pool(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling: int = 2) -> Tensor:
        module = layer(size, x.shape[1], spatial_scale=scale, sampling_ratio=sampling).to(x.dtype)
        return module(x, rois) * (2 if layer is ModulatedDeformRoIPoolPack else 1)

    return pool


POOLINGS = {
    'roi_align': (lambda x, rois, size, scale: roi_align(x, rois, size, scale, 2, 'avg', True), ALIGNED),
    'roi_pool': (roi_pool, POOLED),
    'deform': (deform_pool(DeformRoIPoolPack), ALIGNED),
    'modulated_deform': (deform_pool(ModulatedDeformRoIPoolPack), ALIGNED),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', MAPS)
@pytest.mark.parametrize('pooling', POOLINGS)
def test_pooling_of_regions(pooling: str, case: str, dtype: torch.dtype) -> None:
    pool, expected = POOLINGS[pooling]
    x = torch.tensor(MAPS[case][0], dtype=dtype, requires_grad=True)
    output = pool(x, torch.tensor(MAPS[case][1], dtype=dtype), (2, 2), 1.0)
    output.sum().backward()
    assert_close(output, expected[case][0], dtype)
    assert_close(x.grad, expected[case][1], dtype)


DEFORM = dict(
    input=[[[[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [3.0, 5.0, 2.0]]]],
    offset_weight=[
        [0.1, 0.4, 0.6, 0.1],
        [0.3, 0.2, 0.1, 0.3],
        [0.5, 0.5, 0.2, 0.8],
        [0.8, 0.3, 0.9, 0.1],
        [0.3, 0.1, 0.2, 0.5],
        [0.3, 0.7, 0.5, 0.3],
        [0.6, 0.2, 0.5, 0.3],
        [0.4, 0.1, 0.8, 0.4],
    ],
    offset_bias=[0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7],
    weight=[0.4, 0.2, 0.1, 0.9],
    output=[[[[1.650, 0.0], [0.0, 0.0]]]],
    input_grad=[[[[-0.666, 0.204, 0.0], [0.030, -0.416, 0.012], [0.0, 0.252, 0.129]]]],
    offset_weight_grad=[
        [1.44, 2.88, 0.0, 1.44],
        [-0.72, -1.44, 0.0, -0.72],
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [-0.10, -0.20, 0.0, -0.10],
        [-0.08, -0.16, 0.0, -0.08],
        [-0.54, -1.08, 0.0, -0.54],
        [-0.54, -1.08, 0.0, -0.54],
    ],
    offset_bias_grad=[1.44, -0.72, 0.0, 0.0, -0.10, -0.08, -0.54, -0.54],
    weight_grad=[3.62, 0.0, 0.40, 0.18],
)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize(('num', 'step'), [(10, 2), (10, 32), (1, 2)])
def test_deformable_convolution(num: int, step: int, dtype: torch.dtype) -> None:
    module = DeformConv2dPack(1, 1, 2, im2col_step=step)
    module.conv_offset.weight.data = torch.tensor(DEFORM['offset_weight']).view(8, 1, 2, 2)
    module.conv_offset.bias.data = torch.tensor(DEFORM['offset_bias'])
    module.weight.data = torch.tensor(DEFORM['weight']).view(1, 1, 2, 2)
    module.to(dtype)
    x = torch.tensor(DEFORM['input'] * num, dtype=dtype, requires_grad=True)
    output = module(x)
    output.sum().backward()
    assert_close(output, DEFORM['output'] * num)
    assert_close(x.grad, DEFORM['input_grad'] * num)
    assert_close(module.conv_offset.weight.grad.view(8, 4) / num, DEFORM['offset_weight_grad'])
    assert_close(module.conv_offset.bias.grad / num, DEFORM['offset_bias_grad'])
    assert_close(module.weight.grad.flatten() / num, DEFORM['weight_grad'])


def test_deformable_convolution_refuses_what_mmcv_refuses() -> None:
    with pytest.raises(AssertionError, match='batch size must be divisible by im2col_step'):
        DeformConv2dPack(1, 1, 2, im2col_step=3)(torch.zeros(10, 1, 3, 3))
    for arguments, options in (((1, 1, 2), dict(bias=True)), ((3, 2, 3), dict(groups=2)), ((3, 4, 3), dict(groups=3))):
        with pytest.raises(AssertionError):
            DeformConv2d(*arguments, **options)


MODULATED = dict(
    output=[[[[0.5, 1.5, 2.5, 1.5], [1.0, 3.0, 5.0, 3.0], [1.0, 3.0, 5.0, 3.0], [0.5, 1.5, 2.5, 1.5]]]],
    offset_weight_grad=[
        [-7.0, -4.0, 0.0, 0.0],
        [-9.0, 7.5, -6.0, 5.0],
        [-4.0, -7.0, 0.0, 0.0],
        [-7.5, -9.0, -5.0, -6.0],
        [-7.0, -4.0, -7.0, -4.0],
        [-6.0, 5.0, -9.0, 7.5],
        [-4.0, -7.0, -4.0, -7.0],
        [-5.0, -6.0, -7.5, -9.0],
        [10.5, 6.0, 7.0, 4.0],
        [6.0, 10.5, 4.0, 7.0],
        [7.0, 4.0, 10.5, 6.0],
        [4.0, 7.0, 6.0, 10.5],
    ],
    offset_bias_grad=[-3.0, -1.5, -3.0, -1.5, -3.0, -1.5, -3.0, -1.5, 4.5, 4.5, 4.5, 4.5],
)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_fresh_modulated_convolution_in_the_padding(dtype: torch.dtype) -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0]] * 3]], dtype=dtype, requires_grad=True)
    module = ModulatedDeformConv2dPack(1, 1, 2, padding=1, bias=False)
    module.weight.data.fill_(1.0)
    module.to(dtype)
    output = module(x)
    output.sum().backward()
    assert_close(output, MODULATED['output'], dtype)
    assert_close(x.grad, np.full((1, 1, 3, 3), 2.0), dtype)
    assert_close(module.weight.grad, np.full((1, 1, 2, 2), 9.0), dtype)
    assert_close(module.conv_offset.weight.grad.view(12, 4), MODULATED['offset_weight_grad'], dtype)
    assert_close(module.conv_offset.bias.grad, MODULATED['offset_bias_grad'], dtype)


LOGITS = [
    ([[1.0, 0.0], [0.0, 1.0]], [0, 1]),
    ([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]], [2, 1]),
    ([[1e-6, 2e-6, 3e-6], [4e-6, 5e-5, 6e-4], [7e-3, 8e-2, 9e-1]], [1, 2, 0]),
]
LOSSES = {
    'softmax': (
        softmax_focal_loss,
        [
            (0.00566451, [[-0.00657264, 0.00657264], [0.00657264, -0.00657264]]),
            (0.34956908, [[0.10165970, 0.03739851, -0.13905823], [0.01227554, -0.10298023, 0.09070466]]),
            (
                0.15754992,
                [
                    [0.02590877, -0.05181759, 0.02590882],
                    [0.02589641, 0.02589760, -0.05179400],
                    [-0.07307514, 0.02234372, 0.05073142],
                ],
            ),
        ],
    ),
    'sigmoid': (
        sigmoid_focal_loss,
        [
            (0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
            (1.10251057, [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]]),
            (
                0.42287254,
                [
                    [0.07457182, -0.02485716, 0.07457201],
                    [0.07457211, 0.07457669, -0.02483728],
                    [-0.02462499, 0.08277918, 0.18050370],
                ],
            ),
        ],
    ),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', range(3))
@pytest.mark.parametrize('kind', LOSSES)
def test_focal_losses(kind: str, case: int, dtype: torch.dtype) -> None:
    function, expected = LOSSES[kind]
    x = torch.tensor(LOGITS[case][0], dtype=dtype, requires_grad=True)
    loss = function(x, torch.tensor(LOGITS[case][1]), 2.0, 0.25, None, 'mean')
    loss.backward()
    assert_close(loss, expected[case][0], dtype)
    assert_close(x.grad, expected[case][1], dtype)


BOXES = [[6.0, 3.0, 8.0, 7.0], [3.0, 6.0, 9.0, 11.0], [3.0, 7.0, 10.0, 12.0], [1.0, 4.0, 13.0, 7.0]]
SCORES = [0.6, 0.9, 0.7, 0.2]
SOFT = {
    'linear': ([1, 0, 2, 3], [0.9, 0.6, 0.29024392, 0.2]),
    'gaussian': ([1, 0, 2, 3], [0.9, 0.59630775, 0.35275510, 0.18650459]),
    'naive': ([1, 0, 3], [0.9, 0.6, 0.2]),
}


def test_suppression() -> None:
    dets, kept = nms(torch.tensor(BOXES), torch.tensor(SCORES), iou_threshold=0.3, offset=0)
    assert kept.tolist() == [1, 0, 3]
    assert_close(dets, [[*BOXES[index], SCORES[index]] for index in (1, 0, 3)])


@pytest.mark.parametrize('method', SOFT)
def test_soft_suppression(method: str) -> None:
    kept, scores = SOFT[method]
    dets, indices = soft_nms(torch.tensor(BOXES), torch.tensor(SCORES), 0.3, sigma=0.5, min_score=0.01, method=method)
    assert indices.tolist() == kept
    assert_close(dets, [[*BOXES[index], score] for index, score in zip(kept, scores, strict=True)])


def test_matched_suppression() -> None:
    boxes = [[49.1, 32.4, 51.0, 35.9, 0.9], [49.3, 32.9, 51.0, 35.3, 0.9]]
    boxes += [[35.3, 11.5, 39.9, 14.5, 0.4], [35.2, 11.7, 39.7, 15.7, 0.3]]
    dets = torch.tensor(boxes)
    groups, arrays = nms_match(dets, 0.6), nms_match(dets.numpy(), 0.6)
    kept = nms(dets[:, :4].contiguous(), dets[:, 4].contiguous(), 0.6)[1]
    assert [group.tolist() for group in groups] == [array.tolist() for array in arrays]
    assert len(groups) == 2 and {group[0].item() for group in groups} == set(kept.tolist())
    assert nms_match(np.array([]), 0.6) == []
    with pytest.raises(AssertionError):
        nms_match(np.zeros((2, 3)), 0.6)


OVERLAPS = {
    'all': (
        [[1, 1, 3, 4], [2, 2, 3, 4], [7, 7, 8, 8]],
        [[0, 2, 2, 5], [2, 1, 3, 3]],
        False,
        [[1 / 3, 0.5], [0.2, 0.5], [0, 0]],
    ),
    'aligned': ([[1, 1, 3, 4], [2, 2, 3, 4]], [[0, 2, 2, 5], [2, 1, 3, 3]], True, [1 / 3, 0.5]),
    'moving': ([[0, 0, 3, 3]], [[4, 0, 5, 3], [3, 0, 4, 3], [2, 0, 3, 3], [1, 0, 2, 3]], False, [[0, 0.2, 0.5, 0.5]]),
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', OVERLAPS)
def test_overlaps(case: str, dtype: torch.dtype) -> None:
    first, second, aligned, expected = OVERLAPS[case]
    boxes = torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype)
    assert_close(bbox_overlaps(*boxes, aligned=aligned, offset=1), expected, dtype)


@pytest.mark.parametrize('layer', [CARAFE, CARAFENaive])
def test_reassembly_has_the_gradient_of_its_finite_differences(layer: type) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 64, 3, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, 100, 6, 6, dtype=torch.float64).sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(layer(5, 4, 2), (features, masks), atol=1e-4, eps=1e-4, fast_mode=True)


def test_attention_layer() -> None:
    with pytest.raises(ValueError, match='divisible by num_heads'):
        MultiScaleDeformableAttention(embed_dims=256, num_heads=7)
    layer = MultiScaleDeformableAttention(embed_dims=3, num_levels=2, num_heads=3)
    layer.init_weights()
    query = torch.rand(5, 1, 3)
    shapes, starts = torch.tensor([[2, 2], [1, 1]]), torch.tensor([0, 4])
    points = torch.rand(1, 5, 2, 2)
    output = layer(query, query, query, reference_points=points, spatial_shapes=shapes, level_start_index=starts)
    assert output.shape == query.shape and torch.isfinite(output).all()
