"""Lists what the papers printed about the systems that the configs build: sizes, scores and speed.

Figures are decimal numbers as printed, because a printed figure is rounded: 4.2 means 4.15 to 4.25
(:func:`agrees`). Where a figure was not printed, or more digits are known, a *derived* one is given too,
counted from the authors' released code. Scores and speeds are the authors'; none was measured here.

Sources: [IN] InceptionNeXt, arXiv:2303.16900v3. [FN] FasterNet, arXiv:2303.03667. [CNX] ConvNeXt, arXiv:2201.03545 and
its released configs. [MO] MambaOut, arXiv:2405.07992.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

PARAMS_TOLERANCE = 0.005  # share of a figure by which a count may differ from it, in addition to rounding
MACS_TOLERANCE = 0.01

IN1K, IN1K_384 = (224, 224), (384, 384)
COCO, UPERNET, SEMANTIC_FPN = (800, 1280), (512, 2048), (512, 512)
NO_MASK_LAYERS = (
    "they equal ours if the mask head's deconvolution and logits (6.74 G at 100 regions) are left out; "
    'the authors do not say why.'
)


@dataclass(frozen=True)
class Published:
    """One system of a paper's table.

    Attributes:
        config: Name of the config that builds it, without folder and suffix.
        model: Its name in the paper.
        source: Paper and table.
        shape: Height and width of the image that the MACs belong to, in pixels.
        params: Parameters as printed, in millions.
        macs: Multiply-accumulates as printed, in 1e9.
        derived_params: Parameters counted from the released code, in millions.
        derived_macs: Multiply-accumulates counted from the released code, in 1e9.
        exact_params: Parameters of the released network, to the last one.
        backbone_params: The same without the classifier.
        score: As printed, with the metric.
        speed: What was timed -> figure, with the unit in its name.
        undercount: What ``macs`` leaves out, so a count must agree with ``derived_macs`` instead.
    """

    config: str
    model: str
    source: str
    shape: tuple[int, int]
    params: Decimal | None = None
    macs: Decimal | None = None
    derived_params: Decimal | None = None
    derived_macs: Decimal | None = None
    exact_params: int | None = None
    backbone_params: int | None = None
    score: str = ''
    speed: Mapping[str, float] = field(default_factory=dict)
    undercount: str = ''

    def params_references(self) -> list[Decimal]:
        """Return the figures, in millions, that a count of the parameters must agree with."""
        return [figure for figure in (self.params, self.derived_params) if figure is not None]

    def macs_references(self) -> list[Decimal]:
        """Return the figures, in 1e9, that a count of the multiply-accumulates must agree with."""
        printed = None if self.undercount else self.macs
        return [figure for figure in (printed, self.derived_macs) if figure is not None]


def agrees(count: float, figure: Decimal, tolerance: float) -> bool:
    """Tell whether a count agrees with a printed figure: within half a unit of its last digit plus a tolerance.

    Args:
        count: In the unit of the figure.
        figure: As printed.
        tolerance: Share of the figure, for example 0.01.
    """
    rounding = Decimal(1).scaleb(int(figure.as_tuple().exponent)) / 2
    return abs(count - float(figure)) <= float(rounding) + tolerance * float(figure)


def _figure(text: str) -> Decimal | None:
    return None if text == '-' else Decimal(text)


def _speed(names: tuple[str, ...], figures: str) -> dict[str, float]:
    values = figures.split('/')
    return {name: float(value) for name, value in zip(names, values, strict=True) if value != '-'}


# [IN] measured on an A100 in TF32 (PyTorch 1.13) and on a 2080Ti in FP32 (1.8), batch 128 reduced until it fits, the
# better of channels first and last. [FN] on a 2080Ti at batch 32, and at batch 1 on one thread of a Core i9-9900X and
# of a Cortex-A72, batch norms fused.
A100 = ('A100 train img/s', 'A100 infer img/s')
GPUS_IN = (*A100, '2080Ti train img/s', '2080Ti infer img/s')
DEVICES_FN = ('2080Ti infer img/s', 'i9-9900X ms', 'Cortex-A72 ms')


def _inceptionnext_classifiers() -> Iterator[Published]:
    for arch, schedule, shape, params, macs, top1, exact, backbone, speed in (
        ('a', '8xb160-450e', IN1K, '4.2', '0.51', '75.3', 4_156_520, 2_885_440, '2661/9876/992/3595'),
        ('t', '8xb128-300e', IN1K, '28.1', '4.2', '82.3', 28_055_680, 23_974_296, '901/2900/254/822'),
        ('s', '8xb128-300e', IN1K, '49.4', '8.4', '83.5', 49_374_016, 45_292_632, '521/1750/130/447'),
        ('b', '8xb128-300e', IN1K, '86.7', '14.9', '84.0', 86_672_136, 80_444_192, '375/1244/80/287'),
        ('b', '8xb32-30e', IN1K_384, '87', '43.6', '85.2', 86_672_136, 80_444_192, '139/428/27/97'),
    ):
        yield Published(
            config=f'classifier_inceptionnext-{arch}_{schedule}_in1k-{shape[0]}x{shape[1]}',
            model=f'InceptionNeXt-{arch.upper()}',
            source='[IN] Tables 3, 4',
            shape=shape,
            params=_figure(params),
            macs=_figure(macs),
            exact_params=exact,
            backbone_params=backbone,
            score=f'{top1} top-1',
            speed=_speed(GPUS_IN, speed),
        )


def _convnext_classifiers() -> Iterator[Published]:
    for arch, params, macs, top1, exact, names, speed in (
        ('t', '29', '4.5', '82.1', 28_589_128, GPUS_IN, '575/2413/177/590'),
        ('t-k5', '-', '4.4', '82.0', 28_430_152, A100, '675/2704'),
        ('t-k3', '-', '4.4', '81.5', 28_324_168, A100, '798/2802'),
        ('t-k3-par1-2', '-', '4.4', '81.4', 28_291_048, A100, '818/2740'),
        ('t-k3-par3-8', '-', '4.4', '81.4', 28_282_768, A100, '847/2762'),
        ('t-k3-par1-4', '-', '4.4', '81.3', 28_274_488, A100, '871/2808'),
        ('t-k3-par1-8', '-', '4.4', '80.8', 28_266_208, A100, '901/2833'),
        ('t-k3-par1-16', '-', '4.4', '80.1', 28_262_068, A100, '916/2846'),
        ('s', '50', '8.7', '83.1', None, GPUS_IN, '361/1535/105/353'),
        ('b', '89', '15.4', '83.8', None, GPUS_IN, '267/1122/68/236'),
    ):
        yield Published(
            config=f'classifier_convnext-{arch}_8xb128-300e_in1k-224x224',
            model=f'ConvNeXt-{arch.upper()}' if len(arch) == 1 else f'ConvNeXt-T ({arch[2:]})',
            source='[IN] Table 4' if len(arch) == 1 else '[IN] Table 1',
            shape=IN1K,
            params=_figure(params),
            macs=_figure(macs),
            exact_params=exact,
            score=f'{top1} top-1',
            speed=_speed(names, speed),
        )


def _fasternet_classifiers() -> Iterator[Published]:
    for arch, batch, params, macs, top1, exact, backbone, speed in (
        ('t0', 512, '3.9', '0.34', '71.9', 3_905_500, 2_214_900, '6807/9.2/143'),
        ('t1', 512, '7.6', '0.85', '76.2', 7_595_368, 5_659_008, '3782/17.7/285'),
        ('t2', 512, '15.0', '1.91', '78.9', 14_982_888, 12_718_848, '1991/33.5/497'),
        ('s', 512, '31.1', '4.56', '81.3', 31_181_032, 28_589_312, '1029/71.2/1103'),
        ('m', 256, '53.5', '8.74', '83.0', 53_521_464, 50_765_904, '500/129.5/2092'),
        ('l', 256, '93.5', '15.52', '83.5', 93_465_192, 90_218_112, '323/219.5/-'),
    ):
        yield Published(
            config=f'classifier_fasternet-{arch}_8xb{batch}-300e_in1k-224x224',
            model=f'FasterNet-{arch.upper()}',
            source='[FN] Tables 3, 8',
            shape=IN1K,
            params=_figure(params),
            macs=_figure(macs),
            exact_params=exact,
            backbone_params=backbone,
            score=f'{top1} top-1',
            speed=_speed(DEVICES_FN, speed),
        )


def _upernet() -> Iterator[Published]:
    # Parameters with the auxiliary head, MACs without it: the only reading that fits the printed figures.
    for arch, model, source, params, macs, derived_params, derived_macs, score, fps in (
        ('inceptionnext-t', 'InceptionNeXt-T', '[IN] Table 6', '56', '933', '56.40', '932.8', '47.9 mIoU MS', 22.7),
        ('inceptionnext-s', 'InceptionNeXt-S', '[IN] Table 6', '78', '1020', '77.72', '1019.9', '50.0 mIoU MS', 17.6),
        ('inceptionnext-b', 'InceptionNeXt-B', '[IN] Table 6', '115', '1159', '114.98', '1158.5', '50.6 mIoU MS', 17.5),
        ('convnext-t', 'ConvNeXt-T', '[CNX]', '60', '939', '60.2', '938.5', '46.0 mIoU, 46.7 MS', 20.6),
        ('convnext-s', 'ConvNeXt-S', '[CNX]', '82', '1027', '-', '-', '48.7 mIoU, 49.6 MS', 16.8),
        ('convnext-b', 'ConvNeXt-B', '[CNX]', '122', '1170', '-', '-', '49.1 mIoU, 49.9 MS', 15.7),
    ):
        amp = 'amp-' if arch.startswith('convnext') else ''
        yield Published(
            config=f'upernet_{arch}_4xb4-{amp}160k_ade20k-512x512',
            model=model,
            source=source,
            shape=UPERNET,
            params=_figure(params),
            macs=_figure(macs),
            derived_params=_figure(derived_params),
            derived_macs=_figure(derived_macs),
            score=score,
            speed={'2080Ti FPS': fps},
        )


def _semantic_fpn() -> Iterator[Published]:
    for arch, model, params, macs, derived_params, derived_macs, score, fps in (
        ('inceptionnext-t', 'InceptionNeXt-T', '28', '44', '28.35', '43.5', '43.1', 31.4),
        ('inceptionnext-s', 'InceptionNeXt-S', '50', '65', '49.67', '65.3', '45.6', 20.7),
        ('inceptionnext-b', 'InceptionNeXt-B', '85', '100', '84.94', '99.4', '46.4', 20.2),
        ('r50', 'ResNet-50', '29', '46', '-', '-', '36.7', 30.2),
    ):
        yield Published(
            config=f'semantic-fpn_{arch}_8xb4-40k_ade20k-512x512',
            model=model,
            source='[IN] Table 7',
            shape=SEMANTIC_FPN,
            params=_figure(params),
            macs=_figure(macs),
            derived_params=_figure(derived_params),
            derived_macs=_figure(derived_macs),
            score=f'{score} mIoU',
            speed={'2080Ti FPS': fps},
        )


def _mask_rcnn_1x() -> Iterator[Published]:
    for arch, model, source, params, macs, derived_params, derived_macs, score, milliseconds in (
        ('r50', 'ResNet-50', '[FN] Table 4', '44.2', '253', '-', '259.3', '38.0 / 34.4', 54.9),
        ('fasternet-t0', 'FasterNet-T0', '', '-', '-', '22.27', '176.1', '', None),
        ('fasternet-t1', 'FasterNet-T1', '', '-', '-', '25.81', '187.3', '', None),
        ('fasternet-t2', 'FasterNet-T2', '', '-', '-', '32.99', '209.8', '', None),
        ('fasternet-s', 'FasterNet-S', '[FN] Table 4', '49.0', '258', '48.99', '264.8', '39.9 / 36.9', 54.3),
        ('fasternet-m', 'FasterNet-M', '[FN] Table 4', '71.2', '344', '71.22', '350.4', '43.0 / 39.1', 71.4),
        ('fasternet-l', 'FasterNet-L', '[FN] Table 4', '110.9', '484', '110.86', '490.1', '44.0 / 39.9', 93.8),
        ('inceptionnext-a', 'InceptionNeXt-A', '', '-', '-', '22.94', '179.5', '', None),
        ('inceptionnext-t', 'InceptionNeXt-T', '', '-', '-', '44.25', '256.4', '', None),
        ('inceptionnext-s', 'InceptionNeXt-S', '', '-', '-', '65.57', '341.4', '', None),
        ('inceptionnext-b', 'InceptionNeXt-B', '', '-', '-', '100.84', '474.7', '', None),
        ('convnext-t', 'ConvNeXt-T', '[MO] Table 2', '48', '262', '48.09', '261.9', '44.2 / 40.1', None),
        ('convnext-s', 'ConvNeXt-S', '[MO] Table 2', '70', '348', '-', '-', '45.4 / 41.8', None),
        ('convnext-b', 'ConvNeXt-B', '[MO] Table 2', '108', '486', '-', '-', '47.0 / 42.7', None),
    ):
        yield Published(
            config=f'mask-rcnn_{arch}_fpn_1x_coco',
            model=model,
            source=source,
            shape=COCO,
            params=_figure(params),
            macs=_figure(macs),
            derived_params=_figure(derived_params),
            derived_macs=_figure(derived_macs),
            score=f'{score} box / mask AP' if score else '',
            speed={} if milliseconds is None else {'2080Ti ms': milliseconds},
            undercount=NO_MASK_LAYERS if source.startswith('[FN]') else '',
        )


def _convnext_3x() -> Iterator[Published]:
    for method, arch, params, macs, score in (
        ('mask-rcnn', 't', '48', '262', '46.2 / 41.7'),
        ('cascade-mask-rcnn', 't', '86', '741', '50.4 / 43.7'),
        ('cascade-mask-rcnn', 's', '108', '827', '51.9 / 45.0'),
        ('cascade-mask-rcnn', 'b', '146', '964', '52.7 / 45.6'),
    ):
        yield Published(
            config=f'{method}_convnext-{arch}_fpn_amp-ms-crop-3x_coco',
            model=f'ConvNeXt-{arch.upper()}',
            source='[CNX]',
            shape=COCO,
            params=_figure(params),
            macs=_figure(macs),
            score=f'{score} box / mask AP',
        )


# Config's name -> what was published about it.
PUBLISHED: Mapping[str, Published] = {
    row.config: row
    for rows in (
        _inceptionnext_classifiers,
        _convnext_classifiers,
        _fasternet_classifiers,
        _upernet,
        _semantic_fpn,
        _mask_rcnn_1x,
        _convnext_3x,
    )
    for row in rows()
}
