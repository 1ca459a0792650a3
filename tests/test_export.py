"""Do exported files compute what the models do, at sizes they were not recorded at, and run without this project?"""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from leaves import BY_NAME
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from product import FAMILIES
from tiny_sets import reduce
from torch import nn
from torchvision.ops import box_iou

from backbones import ConvNeXt, FasterNet, InceptionNeXt
from dense.errors import UserError
from dense.export import BackboneGraph, ExportGraph, SegmentorGraph, export_model
from dense.export.from_config import choose_graph, describe, export_config
from dense.export.graphs import AdaptiveAvgPool
from dense.predict.description import METADATA
from dense.predict.exported import ExportedModel, paste

PROJECT = Path(__file__).resolve().parent.parent
MASK_RCNN = 'mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160'
UPERNET = 'upernet_inceptionnext-a_450i_mini-128x128'
SEMANTIC_FPN = 'semantic-fpn_fasternet-t0_8xb4-40k_ade20k-512x512'
# Recorded at 128 x 160.
SIZES = [(64, 96), (131, 203), (256, 224)]
# Four stages as any network's, and quick to record.
SMALL = dict(dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), branch_ratio=1 / 4)
BACKBONES = {
    'InceptionNeXt': lambda: InceptionNeXt(SMALL, layer_scale_init_value=0.5),
    'ConvNeXt': lambda: ConvNeXt(dict(dims=SMALL['dims'], depths=SMALL['depths']), layer_scale_init_value=0.5),
    'FasterNet': lambda: FasterNet('t0'),
}


def test_every_family_is_exported() -> None:
    assert set(BACKBONES) == {family.__name__ for family in FAMILIES}


def randomize(model: nn.Module) -> nn.Module:
    """Statistics and weights that a norm folded wrongly, or a bias left out, would show in."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var'):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith(('running_mean', 'bias')):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def build(name: str, *, small: bool = True) -> tuple[Config, nn.Module]:
    cfg = Config.fromfile(BY_NAME[name])
    reduce(cfg)
    if small:
        cfg.model.backbone.arch = SMALL
        if 'neck' in cfg.model:
            cfg.model.neck.in_channels = list(SMALL['dims'])
        else:
            cfg.model.decode_head.pool_scales = (1, 3)  # quicker to record than all four
            cfg.model.decode_head.in_channels = list(SMALL['dims'])
            cfg.model.auxiliary_head.in_channels = SMALL['dims'][2]
    if 'roi_head' in cfg.model:
        cfg.model.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
        cfg.model.test_cfg.rcnn.update(score_thr=0.05, max_per_img=20)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = randomize(revert_sync_batchnorm(MODELS.build(cfg.model)))
    if 'roi_head' in cfg.model:
        # Scores that are told apart, so that the best boxes are the same ones in spite of rounding.
        model.roi_head.bbox_head.fc_cls.weight.data *= 30
        model.rpn_head.rpn_cls.weight.data *= 30
    return cfg, model


def image(height: int, width: int) -> torch.Tensor:
    """RGB, 0..255, ``(1, 3, height, width)``; smooth, so that neighbouring boxes differ."""
    noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(height))
    return nn.functional.interpolate(noise * 255, size=(height, width), mode='bicubic').clamp(0, 255).round()


def outputs_of(path: Path, x: torch.Tensor) -> list[torch.Tensor]:
    if path.suffix == '.pt2':
        return list(torch.export.load(path).module()(x))
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return [torch.from_numpy(output) for output in session.run(None, {'image': x.numpy()})]


def check_maps(backbone: nn.Module, path: Path) -> None:
    for size, batch in zip(SIZES, (1, 3, 2), strict=True):
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = backbone(x)
        maps = outputs_of(path, x)
        assert len(maps) == len(expected) == 4
        for got, wanted in zip(maps, expected, strict=True):
            assert got.shape == wanted.shape
            assert ((got - wanted).norm() / wanted.norm()).item() < 1e-4


def check_labels(model: nn.Module, path: Path, *, logits: bool = False) -> None:
    for size in SIZES:
        x = image(*size)
        data = model.data_preprocessor(dict(inputs=[x[0].flip(0)]))
        with torch.no_grad():
            (expected,) = model.predict(data['inputs'])
        (got,) = outputs_of(path, x)
        if logits:
            wanted = expected.seg_logits.data[None]
            assert got.shape == wanted.shape
            assert ((got - wanted).norm() / wanted.norm()).item() < 1e-4
        else:
            assert got.shape == expected.pred_sem_seg.data.shape
            assert (got == expected.pred_sem_seg.data).float().mean().item() >= 0.999
            assert len(got.unique()) > 1


def reference_detections(model: nn.Module, x: torch.Tensor):
    size = tuple(x.shape[2:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    data = model.data_preprocessor(dict(inputs=[x[0].flip(0)], data_samples=[sample]))
    with torch.no_grad():
        return model.predict(data['inputs'], data['data_samples'])[0].pred_instances


def check_detections(model: nn.Module, path: Path, *, least: int = 3) -> None:
    for size in [(96, 128), *SIZES[1:]]:
        x = image(*size)
        expected = reference_detections(model, x)
        boxes, scores, labels, masks = outputs_of(path, x)
        assert len(boxes) == len(scores) == len(labels) == len(masks) == len(expected) >= least
        iou = box_iou(expected.bboxes, boxes) * (expected.labels[:, None] == labels)
        best, partner = iou.max(dim=1)
        assert best.min() >= 0.99 and len(set(partner.tolist())) == len(expected)
        torch.testing.assert_close(scores[partner], expected.scores, atol=1e-4, rtol=1e-4)
        for i, j in enumerate(partner.tolist()):
            pasted = paste(masks[j].numpy(), boxes[j].numpy(), size)
            assert (pasted == expected.masks[i].numpy()).mean() >= 0.999


DIMS = {
    'backbone': dict(
        image=['batch', 3, 'height', 'width'],
        **{
            f'stride{s}': ['batch', d, f'height_{s}', f'width_{s}']
            for s, d in zip((4, 8, 16, 32), SMALL['dims'], strict=True)
        },
    ),
    'segmentor': dict(image=[1, 3, 'height', 'width'], labels=[1, 'height', 'width']),
    'detector': dict(
        image=[1, 3, 'height', 'width'],
        boxes=['num_detections', 4],
        scores=['num_detections'],
        labels=['num_detections'],
        masks=['num_detections', 28, 28],
    ),
}


def dims_of(path: Path) -> dict[str, list[int | str]]:
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}


@pytest.mark.parametrize('family', ['InceptionNeXt', pytest.param('ConvNeXt', marks=pytest.mark.slow)])
def test_backbone(family: str, tmp_path: Path) -> None:
    backbone = randomize(BACKBONES[family]())
    graph = BackboneGraph(backbone)
    path = export_model(graph, tmp_path / 'maps.onnx', shape=(128, 160), metadata=dict(classes=['a']))
    check_maps(backbone, path)
    assert dims_of(path) == DIMS['backbone']
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    outputs = ['stride4', 'stride8', 'stride16', 'stride32']
    assert about == dict(classes=['a'], task='features', outputs=outputs, smallest=64, sealed=True)
    with pytest.raises(ValueError, match='without --backbone'):
        ExportedModel(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='damaged'):
        ExportedModel(path)


@pytest.mark.slow
@pytest.mark.parametrize('family', BACKBONES)
def test_backbone_as_a_program(family: str, tmp_path: Path) -> None:
    backbone = randomize(BACKBONES[family]())
    check_maps(backbone, export_model(BackboneGraph(backbone), tmp_path / 'maps.pt2', fmt='torch', shape=(128, 160)))


@pytest.mark.slow
def test_segmentor_and_its_runner(tmp_path: Path) -> None:
    cfg, model = build(UPERNET)
    about = describe(cfg, dict(classes=[f'class {i}' for i in range(12)]))
    path = export_model(SegmentorGraph(model), tmp_path / 'labels.onnx', shape=(128, 160), metadata=about)
    check_labels(model, path)
    assert dims_of(path) == DIMS['segmentor']
    picture = cv2.resize(image(120, 200)[0].byte().permute(1, 2, 0).numpy(), (200, 120))
    cv2.imwrite(str(tmp_path / 'picture.png'), picture)
    run_without_the_project(path, tmp_path / 'picture.png', tmp_path / 'out')
    written = cv2.imread(str(tmp_path / 'out' / 'picture.png'), cv2.IMREAD_UNCHANGED)
    # The config's tests resize to 96 x 58 here; the file takes no less than 64 rows.
    resized = cv2.resize(picture, (96, 64), interpolation=cv2.INTER_LINEAR)
    x = torch.from_numpy(np.ascontiguousarray(resized[..., ::-1])).permute(2, 0, 1)[None].float()
    labels = outputs_of(path, x)[0][0].numpy().astype(np.uint8)
    assert (written == 1 + cv2.resize(labels, (200, 120), interpolation=cv2.INTER_NEAREST)).all()


@pytest.mark.slow
def test_mask_rcnn_and_its_runner(tmp_path: Path) -> None:
    cfg, model = build(MASK_RCNN)
    about = describe(cfg, dict(classes=list('abcdefgh'), category_ids=list(range(3, 27, 3))))
    path = export_model(choose_graph(model), tmp_path / 'instances.onnx', shape=(128, 160), metadata=about)
    check_detections(model, path)
    assert dims_of(path) == DIMS['detector']
    cv2.imwrite(str(tmp_path / 'picture.png'), image(120, 200)[0].byte().permute(1, 2, 0).numpy()[..., ::-1])
    run_without_the_project(path, tmp_path / 'picture.png', tmp_path / 'out', '--score', '0.05')
    objects = json.loads((tmp_path / 'out' / 'picture.json').read_text())
    assert objects and all(set(each) == {'box', 'score', 'label', 'number', 'mask'} for each in objects)
    assert all(each['number'] == 3 + 3 * 'abcdefgh'.index(each['label']) for each in objects)
    assert max(each['box'][2] for each in objects) > 96  # pixels of the picture, not of the resized one


LIBRARIES = ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'backbones', 'onnx', 'pycocotools')


def run_without_the_project(model: Path, picture: Path, out: Path, *options: str) -> None:
    """Run tools/infer.py where nothing can be imported but NumPy, OpenCV, Pillow and ONNX Runtime."""
    hide = f'import sys, runpy; sys.modules.update(dict.fromkeys({LIBRARIES})); sys.argv = sys.argv[1:]; '
    command = [sys.executable, '-c', f"{hide} runpy.run_path(sys.argv[0], run_name='__main__')"]
    arguments = [str(PROJECT / 'tools' / 'infer.py'), str(model), str(picture), '--out', str(out), *options]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / 'picture_result.jpg').is_file()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'logits'), [(UPERNET, True), (SEMANTIC_FPN, True), (SEMANTIC_FPN, False)])
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_whole_segmentors(name: str, logits: bool, suffix: str, tmp_path: Path) -> None:
    _, model = build(name, small=False)
    fmt = 'onnx' if suffix == '.onnx' else 'torch'
    path = export_model(SegmentorGraph(model, logits=logits), tmp_path / f'm{suffix}', fmt=fmt, shape=(128, 160))
    check_labels(model, path, logits=logits)
    if fmt == 'onnx' and logits:
        assert dims_of(path)['logits'] == [1, model.out_channels, 'height', 'width']


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_whole_detectors(suffix: str, tmp_path: Path) -> None:
    _, model = build('mask-rcnn_fasternet-t0_fpn_1x_coco', small=False)
    fmt = 'onnx' if suffix == '.onnx' else 'torch'
    path = export_model(choose_graph(model), tmp_path / f'm{suffix}', fmt=fmt, shape=(128, 160))
    check_detections(model, path)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
def test_nothing_found(suffix: str, tmp_path: Path) -> None:
    cfg, model = build(MASK_RCNN)
    model.roi_head.test_cfg.score_thr = 1.0
    fmt = 'onnx' if suffix == '.onnx' else 'torch'
    path = export_model(
        choose_graph(model), tmp_path / f'm{suffix}', fmt=fmt, shape=(128, 160), metadata=describe(cfg, {})
    )
    shapes = [tuple(output.shape) for output in outputs_of(path, image(131, 203))]
    assert shapes == [(0, 4), (0,), (0,), (0, 28, 28)]
    cv2.imwrite(str(tmp_path / 'picture.png'), image(120, 200)[0].byte().permute(1, 2, 0).numpy())
    if fmt == 'torch':  # `dense infer` does not open it
        return
    run_without_the_project(path, tmp_path / 'picture.png', tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'picture.json').read_text()) == []


@pytest.mark.parametrize('size', [(7, 9), (12, 12), (3, 20)])
@pytest.mark.parametrize('output_size', [1, 2, 3, 6, (2, 5)])
def test_adaptive_pooling(size: tuple[int, int], output_size: int | tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    expected = nn.AdaptiveAvgPool2d(output_size)(x)
    torch.testing.assert_close(AdaptiveAvgPool(output_size)(x), expected)


class FixedSize(ExportGraph):
    """Makes a plain number of a size."""

    TASK = 'features'

    @property
    def output_names(self) -> tuple[str, ...]:
        return ('map',)

    @property
    def output_dims(self) -> tuple[tuple[str | None, ...], ...]:
        return ((None, None, 'height', 'width'),)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = [int(side * 0.5) for side in image.shape[2:]]
        small = nn.functional.interpolate(image, size=half)
        return (nn.functional.interpolate(small, size=image.shape[2:]),)


def test_what_would_run_at_one_size_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='computes something else'):
        export_model(FixedSize(), tmp_path / 'm.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(path='m.pt2'), 'does not end in .onnx'),
        (dict(path='m.onnx', fmt='tflite'), 'unknown format'),
        (dict(path='m.onnx', shape=(32, 64)), 'cannot record at 32 x 64'),
        (dict(path='m.onnx', shape=(64, 64)), 'two different sides'),
    ],
)
def test_wrong_arguments(arguments: dict, message: str, tmp_path: Path) -> None:
    arguments['path'] = tmp_path / arguments['path']
    with pytest.raises(UserError, match=message):
        export_model(FixedSize(), **arguments)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    cfg = Config.fromfile(BY_NAME[UPERNET])
    init_default_scope(cfg.default_scope)
    state = revert_sync_batchnorm(MODELS.build(cfg.model)).state_dict()
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for name in names[:6]:
        state[name].view(-1)[-1] = value
    torch.save(dict(state_dict=state), tmp_path / 'diverged.pth')
    with pytest.raises(UserError, match=r'NaN or infinite') as caught:
        export_config(BY_NAME[UPERNET], tmp_path / 'diverged.pth', tmp_path / 'm.onnx')
    assert names[0] in caught.value.cause and 'and 2 more' in caught.value.cause
    assert len(str(caught.value).split('\n')) == 2
    assert not (tmp_path / 'm.onnx').exists()


def test_other_detectors_are_refused() -> None:
    cfg = Config.fromfile(BY_NAME['retinanet_inceptionnext-a_fpn_1x_coco'])
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    with pytest.raises(UserError, match='cannot be exported'):
        choose_graph(model)
    assert isinstance(choose_graph(model.eval(), backbone=True), BackboneGraph)
