"""Builds what the benchmark times from a model's name: the model, images, and a step of inference or training.

Names: ``InceptionNeXt:tiny`` (class and arch of a backbone of this project or of a registered one with a table of
archs), ``timm:resnet50``, or the path of a config. Suffixes: ``+fused``: rewritten for inference
(:mod:`dense.export.fuse_mmcv`); ``+lean``: with lean MLPs (:mod:`backbones.fast.lean_mlp`); ``+tuned``: with everything
that the tools choose for training on a CPU (:mod:`dense.cpu.defaults`); ``+cp``: trained with ``with_cp``; ``+onnx``: a
backbone of this project exported (:mod:`dense.export`) and run by ONNX Runtime on the CPU, with as many threads as
PyTorch has.
``CONFIG+timm:NAME``: the config's model with that timm network as its backbone.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones.base import DenseBackbone, StagedBackbone
from dense.analysis.complexity import FORMULAS, usual_shape
from dense.analysis.forward_parts import run_parts
from dense.benchmark.dummy_targets import SAMPLES, random_regions
from dense.console.output import quiet_libraries
from dense.cpu.defaults import apply_cpu_rewrites
from dense.engine.config import load_config
from dense.errors import UserError, did_you_mean
from dense.export.fuse_mmcv import fuse_model

FUSED, LEAN, TUNED, CHECKPOINTED, ONNX = '+fused', '+lean', '+tuned', '+cp', '+onnx'
TIMM = '+timm:'
IMAGENET = (3, 224, 224)
_PATTERN = re.compile(r'(?P<family>[\w.]+):(?P<arch>[\w.-]+)')


@dataclass
class Subject:
    """A model that can be timed.

    Attributes:
        name: As typed.
        model: On the device, in the mode that is timed.
        shape: Channels, height and width of its images.
        run: Model and images (N, C, H, W) -> anything; the inference that is timed.
        loss: Model and images (N, C, H, W) -> scalar; for training.
        is_fused: Whether it was rewritten for inference.
        flops: FLOPs of a step for one image, two for each multiply-accumulate; a training step includes its
            backward pass, but not what is recomputed there.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    run: Callable[[nn.Module, Tensor], Any]
    loss: Callable[[nn.Module, Tensor], Tensor]
    is_fused: bool = False
    flops: float = 0.0

    def images(self, batch: int) -> Tensor:
        """Return random images, always the same, of shape (batch, C, H, W) on the model's device."""
        images = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        return images.to(next(self.model.parameters()).device)


def build_subject(
    name: str, *, train: bool, device: torch.device, shape: tuple[int, int, int] | None = None, seed: int = 0
) -> Subject:
    """Build a model from its name, with random weights, and count its FLOPs.

    Args:
        name: See the module.
        train: Time training instead of inference.
        device: Where it runs.
        shape: Channels, height and width of its images; by default 3x224x224 for a backbone, timm's own size
            for a timm model, and what publications use for a config's model.
        seed: Seed of the weights.

    Raises:
        UserError: The name is not understood, or it asks to train a fused model, for lean MLPs where there are none,
            or for something that cannot be exported or run by ONNX Runtime.
    """
    plain, is_fused = plain_name(name), name.endswith((FUSED, ONNX))
    if is_fused and train:
        raise UserError(
            f'{name} cannot be trained: a fused or exported model has no gradients', f'use {plain}, or --mode infer'
        )
    torch.manual_seed(seed)
    with quiet_libraries():
        subject = _from_config(plain, shape) if is_config(name) else _from_name(plain, shape or _usual_images(plain))
        subject.name = name
        subject.model.to(device).train(train)
        subject.flops = _count_flops(subject, train)
        if name.endswith(LEAN):
            _make_lean(subject)
        if name.endswith(TUNED):
            apply_cpu_rewrites(subject.model)
        if name.endswith(CHECKPOINTED):
            _checkpoint_blocks(subject)
        if name.endswith(ONNX):
            subject.run, subject.is_fused = _onnx_runner(subject), True
        elif is_fused:
            subject.model, subject.is_fused = fuse_model(subject.model), True
    return subject


def plain_name(name: str) -> str:
    """Return a model's name without its suffixes."""
    for suffix in (FUSED, LEAN, TUNED, CHECKPOINTED, ONNX):
        name = name.removesuffix(suffix)
    return name


def runtime_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the packages that run models instead of PyTorch."""
    return {'onnxruntime': version('onnxruntime')} if any(name.endswith(ONNX) for name in names) else {}


def is_config(name: str) -> bool:
    """Tell whether a model's name is that of a config."""
    return plain_name(name).partition(TIMM)[0].endswith('.py')


def _staged_backbones(subject: Subject) -> list[StagedBackbone]:
    found = [module for module in subject.model.modules() if isinstance(module, StagedBackbone)]
    if not found:
        cause = f'{subject.name} has no backbone of this project, and only those can be trained like this'
        raise UserError(cause, f'use {plain_name(subject.name)}')
    return found


def _checkpoint_blocks(subject: Subject) -> None:
    for backbone in _staged_backbones(subject):
        for stage in backbone.stages:
            stage.with_cp = True


def _make_lean(subject: Subject) -> None:
    remedy = f'give {plain_name(subject.name)}'
    for backbone in _staged_backbones(subject):
        try:
            backbone.use_lean_mlp()
        except ValueError as error:
            raise UserError(str(error).split('\n')[0], remedy) from error


def _onnx_runner(subject: Subject) -> Callable[[nn.Module, Tensor], Any]:
    """Export a backbone, and return its inference by ONNX Runtime: (ignored, images) -> one map for each output."""
    from dense.export.graphs import BackboneGraph
    from dense.export.write import NEEDED, export_model, need_packages

    need_packages(*NEEDED, 'onnxruntime', purpose='timing an exported model')
    remedy = f'give {plain_name(subject.name)}{FUSED}'
    if not isinstance(subject.model, DenseBackbone):
        raise UserError(f'{subject.name} is not a backbone of this project; only those can be exported', remedy)
    if next(subject.model.parameters()).device.type != 'cpu':
        raise UserError(f'{subject.name} runs on the CPU only', f'{remedy}, or --device cpu')
    channels, *sides = subject.shape
    if channels != 3 or min(sides) < BackboneGraph.SMALLEST:
        raise UserError(
            f'an exported backbone does not accept images of {channels} x {sides[0]} x {sides[1]}',
            f'give three channels and at least {BackboneGraph.SMALLEST} pixels each way with --shape',
        )
    with tempfile.TemporaryDirectory() as folder:
        session = _onnx_session(export_model(BackboneGraph(subject.model), Path(folder) / 'backbone.onnx'))

    def run(_: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {BackboneGraph.INPUT: images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run


def _onnx_session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def _from_name(name: str, shape: tuple[int, int, int]) -> Subject:
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UserError(
            f'cannot read the model {name!r}', 'write Class:arch, timm:name or a config file, for example timm:resnet50'
        )
    if match['family'] == 'timm':
        return Subject(name, _timm_model(match['arch'], shape[0]), shape, _timm_features, _timm_loss)
    return Subject(name, _backbone(match['family'], match['arch'], shape[0]), shape, _call, _backbone_loss)


def _usual_images(name: str) -> tuple[int, int, int]:
    """Return the image size that a network was trained at, if timm knows it."""
    family, _, arch = name.partition(':')
    if family != 'timm' or not timm.is_model(arch):
        return IMAGENET
    known = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    return known.input_size if known else IMAGENET


def _timm_model(name: str, channels: int) -> nn.Module:
    if not timm.is_model(name):
        raise UserError(f'timm has no model {name!r}', did_you_mean(name, timm.list_models()))
    return timm.create_model(name, in_chans=channels)


def _backbone(family: str, arch: str, channels: int) -> nn.Module:
    layer: Any = MODELS.get(family)
    archs = getattr(layer, 'ARCHS', {})
    if not archs:
        known = [known for known in backbones.__all__ if getattr(backbones, known).ARCHS]
        raise UserError(f'unknown family of backbones {family!r}', did_you_mean(family, [*known, 'timm']))
    if arch not in archs:
        raise UserError(f'{family} has no arch {arch!r}', did_you_mean(arch, archs))
    return layer(arch, in_channels=channels, out_indices=(len(archs[arch].dims) - 1,))


def _call(model: nn.Module, images: Tensor) -> Any:
    return model(images)


def _backbone_loss(model: nn.Module, images: Tensor) -> Tensor:
    (features,) = model(images)
    return features.square().mean()


def _timm_features(model: Any, images: Tensor) -> Any:
    return model.forward_features(images)  # the whole network without its classifier


def _timm_loss(model: Any, images: Tensor) -> Tensor:
    return model.forward_features(images).square().mean()


def _from_config(path: str, shape: tuple[int, int, int] | None) -> Subject:
    config, _, network = path.partition(TIMM)
    cfg = load_config(config)
    if network:
        kept = {key: cfg.model.backbone[key] for key in ('out_norm', 'drop_path_rate') if key in cfg.model.backbone}
        cfg.model.backbone = dict(type='TimmBackbone', arch=network, **kept)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    make_samples = SAMPLES[cfg.get('default_scope', 'mmengine')]

    def loss(model: Any, images: Tensor) -> Tensor:
        return model.parse_losses(model(images, make_samples(model, images), mode='loss'))[0]

    model = MODELS.build(cfg.model)
    return Subject(path, revert_sync_batchnorm(model), shape or (3, *usual_shape(cfg)), _run_parts, loss)


def _run_parts(model: nn.Module, images: Tensor) -> None:
    def pool(extractor: Any, features: tuple[Tensor, ...], num_regions: int) -> Tensor:
        return extractor(features[: extractor.num_inputs], random_regions(num_regions, images))

    run_parts(model, images, call=lambda part, module, given: module(given), pool=pool)


def _count_flops(subject: Subject, train: bool) -> float:
    images = subject.images(2 if train else 1)  # batch norms that train need more than one value
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter, torch.set_grad_enabled(train):
        if train:
            subject.loss(subject.model, images).backward()
        else:
            subject.run(subject.model, images)
    subject.model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(images)
