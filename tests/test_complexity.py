"""Do parameters and multiply-accumulates of the configs agree with the papers?"""

import json
import math
import re
import runpy
from decimal import Decimal

import pytest
from counts import complexity_of
from leaves import BY_NAME, CONFIGS, EXPECTED, load
from torch import nn

from dense.analysis.complexity import Complexity, Cost, config_complexity, count_model, overview, usual_shape
from dense.analysis.published import MACS_TOLERANCE, PARAMS_TOLERANCE, PUBLISHED, agrees
from dense.errors import UserError

rows = pytest.mark.parametrize('row', PUBLISHED.values(), ids=PUBLISHED)


def test_every_published_system_has_its_config():
    assert set(PUBLISHED) <= {name for names in EXPECTED.values() for name in names}


@rows
def test_parameters(row):
    count = complexity_of(row.config).params
    references = row.params_references()
    assert references or row.exact_params
    for figure in references:
        assert agrees(count / 1e6, figure, PARAMS_TOLERANCE), (count, figure)
    assert row.exact_params in (None, count)


@rows
def test_macs(row):
    count = complexity_of(row.config).macs
    references = row.macs_references()
    assert references
    for figure in references:
        assert agrees(count / 1e9, figure, MACS_TOLERANCE), (count, figure)


@pytest.mark.parametrize('name', [name for name, row in PUBLISHED.items() if row.backbone_params])
def test_parameters_of_the_backbone_alone(name):
    assert complexity_of(name).parts['backbone'].params == PUBLISHED[name].backbone_params


@pytest.mark.parametrize('arch', 'sml')
def test_what_fasternets_detectors_leave_out(arch):
    """The published MACs are ours without the mask head's last two layers, which are computed here from their sizes."""
    name = f'mask-rcnn_fasternet-{arch}_fpn_1x_coco'
    deconvolution = 100 * (14 * 14) * (2 * 2) * 256 * 256
    logits = 100 * (28 * 28) * 256 * 80
    assert PUBLISHED[name].undercount
    assert agrees((complexity_of(name).macs - deconvolution - logits) / 1e9, PUBLISHED[name].macs, 0.002)


def test_convnext_at_384():
    """Table 4 of the InceptionNeXt paper: 45.0 G."""
    path = BY_NAME['classifier_convnext-b_8xb128-300e_in1k-224x224']
    assert agrees(config_complexity(path, (384, 384)).macs / 1e9, Decimal('45.0'), MACS_TOLERANCE)


def test_parts_of_a_detector():
    """Each head against its definition: K x K x C_in x C_out for every output pixel."""
    parts = complexity_of('mask-rcnn_inceptionnext-t_fpn_1x_coco').parts
    assert list(parts) == ['backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head']
    # Strides 4 to 64; the last is a maximum of every second pixel, rounded up.
    pixels = [math.ceil(800 / s) * math.ceil(1280 / s) for s in (4, 8, 16, 32, 64)]
    assert parts['rpn_head'].macs == sum(pixels) * 256 * (9 * 256 + 3 + 12)
    assert parts['bbox_head'].macs == 1000 * (49 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    assert parts['mask_head'].macs == 100 * (4 * 196 * 9 * 256**2 + 784 * 256**2 + 784 * 256 * 80)


def test_cascade_feeds_every_head():
    parts = complexity_of('cascade-mask-rcnn_convnext-t_fpn_amp-ms-crop-3x_coco').parts
    assert [part for part in parts if part.startswith('bbox_head')] == [f'bbox_head{i}' for i in range(3)]
    assert len({parts[f'mask_head{i}'].macs for i in range(3)}) == 1


def test_auxiliary_head_does_not_run():
    parts = complexity_of('upernet_inceptionnext-t_4xb4-160k_ade20k-512x512').parts
    assert parts['auxiliary_head'].macs == 0
    assert parts['auxiliary_head'].params == 9 * 384 * 256 + 2 * 256 + 257 * 150


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('mask-rcnn_inceptionnext-a_fpn_amp-ms-crop-3x_coco', (800, 1280)),
        ('retinanet_inceptionnext-a_fpn_1x_coco', (800, 1280)),
        ('upernet_inceptionnext-a_4xb4-160k_ade20k-512x512', (512, 2048)),
        ('semantic-fpn_inceptionnext-a_8xb4-40k_ade20k-512x512', (512, 512)),
        ('classifier_inceptionnext-b_8xb32-30e_in1k-384x384', (384, 384)),
        ('mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160', (160, 160)),
        ('upernet_inceptionnext-a_450i_mini-128x128', (128, 128)),
    ],
)
def test_usual_shape(name, shape):
    assert usual_shape(load(name)) == shape


class Parts(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_a_part_that_cannot_be_fed_is_an_error():
    model = Parts(backbone=nn.Conv2d(3, 4, 1), query_decoder=nn.Linear(2, 2))
    with pytest.raises(UserError, match=r'6 of 22 parameters.*query_decoder'):
        count_model(model, (8, 8))


def test_deformable_convolution_counts_as_a_plain_one():
    from mmcv.ops import ModulatedDeformConv2dPack

    block = Parts(backbone=ModulatedDeformConv2dPack(3, 8, 3, padding=1)).eval().to('meta')
    macs = count_model(block, (10, 12)).macs
    assert macs == 10 * 12 * 9 * 3 * (8 + 27)  # with the layer that predicts 18 offsets and 9 masks


@pytest.mark.parametrize(
    ('count', 'figure', 'tolerance', 'expected'),
    [
        (4.25, '4.2', 0, True),
        (4.26, '4.2', 0, False),
        (26.5, '26', 0, True),
        (26.6, '26', 0, False),
        (100.9, '100.0', 0.01, True),
        (101.1, '100.0', 0.01, False),
    ],
)
def test_rounding_and_tolerance(count, figure, tolerance, expected):
    assert agrees(count, Decimal(figure), tolerance) is expected


def test_the_command_prints_and_writes(tmp_path, capsys):
    name = 'upernet_inceptionnext-t_4xb4-160k_ade20k-512x512'
    main = runpy.run_path(str(CONFIGS.parent / 'tools' / 'complexity.py'))['main']
    out = tmp_path / 'counts.json'
    assert main([str(BY_NAME[name]), '--shape', '64', '96', '--json', str(out)]) == 0
    (written,) = json.loads(out.read_text())
    assert written['shape'] == [64, 96] and written['params'] == complexity_of(name).params
    shown = capsys.readouterr().out
    assert f'{name} at 64x96' in shown and 'published' not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_printed_beside_the_published_figures():
    shown = str(complexity_of('mask-rcnn_fasternet-s_fpn_1x_coco'))
    assert re.search(r'published \[FN\] Table 4 +49.0 +258\n', shown)
    assert 'from the published code' in shown and 'are left out' in shown.splitlines()[-1]


def test_overview_groups_by_image_size():
    counts = [Complexity(name, shape, {'a': Cost(10**6, 10**9)}) for name, shape in (('x', (1, 2)), ('y', (3, 4)))]
    groups = [group.splitlines() for group in overview([*counts, counts[0]]).split('\n\n')]
    assert [[line.split()[0] for line in group] for group in groups] == [['at', 'x', 'x'], ['at', 'y']]
    assert groups[0][1].split()[1:] == ['1.00', '1.00']
