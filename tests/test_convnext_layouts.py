"""Are ConvNeXt and its variants what the papers define, and can every published layout of their weights be read?"""

import re
from collections.abc import Mapping

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor
from torch.nn import functional as F

from backbones import ConvNeXt
from backbones.serialization import CheckpointError
from backbones.weights import load_pretrained

# Arch -> side of the kernels, share of the convolved channels, parameters with the classifier (the released code).
VARIANTS = {
    'tiny': (7, 1, 28_589_128),
    'tiny_k5': (5, 1, 28_430_152),
    'tiny_k3': (3, 1, 28_324_168),
    'tiny_k3_par1_2': (3, 1 / 2, 28_291_048),
    'tiny_k3_par3_8': (3, 3 / 8, 28_282_768),
    'tiny_k3_par1_4': (3, 1 / 4, 28_274_488),
    'tiny_k3_par1_8': (3, 1 / 8, 28_266_208),
    'tiny_k3_par1_16': (3, 1 / 16, 28_262_068),
}
TINY = dict(dims=(96, 192, 384, 768), depths=(3, 3, 9, 3))
CLASSIFIER = ('norm.', 'head.')


def published_shapes(dims, depths, kernel: int, ratio: float) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the authors' file, written down from the papers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(name: str, *weight: int, bias: int) -> None:
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = weight, (bias,)

    affine('downsample_layers.0.0', dims[0], 3, 4, 4, bias=dims[0])
    affine('downsample_layers.0.1', dims[0], bias=dims[0])
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        if i > 0:
            affine(f'downsample_layers.{i}.0', dims[i - 1], bias=dims[i - 1])
            affine(f'downsample_layers.{i}.1', dim, dims[i - 1], 2, 2, bias=dim)
        for j in range(depth):
            block, convolved = f'stages.{i}.{j}', round(dim * ratio)
            shapes[f'{block}.gamma'] = (dim,)
            affine(block + ('.dwconv' if ratio == 1 else '.dwconv.conv'), convolved, 1, kernel, kernel, bias=convolved)
            affine(f'{block}.norm', dim, bias=dim)
            affine(f'{block}.pwconv1', 4 * dim, dim, bias=4 * dim)
            affine(f'{block}.pwconv2', dim, 4 * dim, bias=dim)
    affine('norm', dims[-1], bias=dims[-1])
    affine('head', 1000, dims[-1], bias=1000)
    return shapes


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        scale, shift = (0.02, 0) if len(shape) > 1 else (0.1, 0) if name.endswith('bias') else (0.1, 0.5)
        state[name] = torch.empty(shape).normal_(shift, scale, generator=generator)
    return state


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return normed * weight[:, None, None] + bias[:, None, None]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum('nchw,dc->ndhw', x, weight) + bias[:, None, None]


def defined_block(x: Tensor, block: Mapping[str, Tensor]) -> Tensor:
    kernel, bias = [block[key] for key in sorted(block, reverse=True) if key.startswith('dwconv.')]
    kept = x.shape[1] - len(bias)  # the first channels
    convolved = F.conv2d(x[:, kept:], kernel, bias, padding=kernel.shape[-1] // 2, groups=len(bias))
    y = layer_norm(torch.cat((x[:, :kept], convolved), 1), block['norm.weight'], block['norm.bias'])
    y = pointwise(y, block['pwconv1.weight'], block['pwconv1.bias'])
    y = y * (1 + torch.erf(y / 2**0.5)) / 2
    y = pointwise(y, block['pwconv2.weight'], block['pwconv2.bias'])
    return x + y * block['gamma'][:, None, None]


def defined_maps(x: Tensor, state: Mapping[str, Tensor], depths) -> list[Tensor]:
    """The outputs of the stages, computed from the authors' file as the papers say."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    maps = []
    for i, depth in enumerate(depths):
        first, second = below(f'downsample_layers.{i}.0.'), below(f'downsample_layers.{i}.1.')
        if i == 0:
            x = layer_norm(F.conv2d(x, **first, stride=4), **second)
        else:
            x = F.conv2d(layer_norm(x, **first), **second, stride=2)
        for j in range(depth):
            x = defined_block(x, below(f'stages.{i}.{j}.'))
        maps.append(x)
    return maps


@pytest.mark.parametrize('arch', VARIANTS)
def test_variants_have_the_published_tensors(arch):
    kernel, ratio, num_params = VARIANTS[arch]
    published = {
        key: torch.empty(s, device='meta') for key, s in published_shapes(**TINY, kernel=kernel, ratio=ratio).items()
    }
    assert sum(value.numel() for value in published.values()) == num_params
    with torch.device('meta'):
        model = ConvNeXt(arch)
    own = {key: value.shape for key, value in model.state_dict().items()}
    converted = {key: value.shape for key, value in ConvNeXt.convert_state_dict(published).items()}
    assert {key: shape for key, shape in converted.items() if not key.startswith(CLASSIFIER)} == own
    assert len(own) == len(converted) - 4 == 178


@pytest.mark.parametrize('arch', VARIANTS)
def test_variants_compute_what_the_papers_define(arch):
    """The arch's kernel and share on fewer channels and blocks, in double precision."""
    kernel, ratio, _ = VARIANTS[arch]
    size = dict(dims=(16, 32, 48, 64), depths=(1, 2, 2, 1))
    spec = ConvNeXt.ARCHS[arch]
    model = ConvNeXt(dict(size, kernel=spec.kernel, conv_ratio=spec.conv_ratio)).double().train()
    state = random_weights(published_shapes(**size, kernel=kernel, ratio=ratio))
    leaves = {name: value.double().requires_grad_() for name, value in state.items() if not name.startswith(CLASSIFIER)}
    model.load_state_dict({name: leaf.detach() for name, leaf in ConvNeXt.convert_state_dict(leaves).items()})
    x = torch.randn(2, 3, 65, 66, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, expected = model(x), defined_maps(x, leaves, size['depths'])
    assert len(got) == len(expected) == 4
    for ours, defined in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-9, atol=1e-9)
    for outs in (got, expected):
        sum(out.square().mean() for out in outs).backward()
    gradients = ConvNeXt.convert_state_dict({name: leaf.grad for name, leaf in leaves.items()})
    parameters = dict(model.named_parameters())
    assert parameters.keys() == gradients.keys() and len(gradients) == NUM_TENSORS
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-9, msg=name)


def test_every_variant_was_compared():
    assert {*VARIANTS, 'small', 'base'} == set(ConvNeXt.ARCHS)


# Layouts, on a small network of timm's.
SMALL = dict(dims=(8, 16, 24, 32), depths=(1, 2, 2, 1))
NUM_TENSORS = 4 + 3 * 4 + 6 * 9


@pytest.fixture(scope='module')
def published() -> dict[str, Tensor]:
    model = TimmConvNeXt(num_classes=5, **SMALL)
    return random_weights({key: tuple(value.shape) for key, value in model.state_dict().items()})


def renamed(state: Mapping[str, Tensor], *renames: tuple[str, str]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    assert len(result) == len(state)
    return result


MODULES = (
    (r'^stem\.', 'downsample_layers.0.'),
    (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
    (r'\.blocks\.', '.'),
)
AUTHORS = (*MODULES, (r'\.conv_dw\.', '.dwconv.'), (r'\.mlp\.fc', '.pwconv'))
MMPRETRAIN = (*MODULES, (r'\.conv_dw\.', '.depthwise_conv.'), (r'\.mlp\.fc', '.pointwise_conv'))


def official(state):
    return {'model': renamed(state, *AUTHORS, (r'^head\.norm\.', 'norm.'), (r'^head\.fc\.', 'head.'))}


def variants(state):
    return renamed(official(state)['model'], (r'\.dwconv\.', '.dwconv.conv.'))


def mmpretrain(state):
    names = renamed(state, *MMPRETRAIN, (r'^head\.norm\.', 'norm3.'), (r'^(?!head\.)', 'backbone.'))
    return {'state_dict': names, 'meta': {}}


def mmpretrain_convolutions(state):
    matrices = r'mlp\.fc[12]\.weight$'
    return mmpretrain({k: v[:, :, None, None] if re.search(matrices, k) else v for k, v in state.items()})


def detector(renames, norms):
    """A checkpoint of a detector whose backbone norms some outputs."""

    def save(state):
        backbone = {key: value for key, value in state.items() if not key.startswith('head.')}
        output_norms = {
            f'norm{i}.{kind}': torch.full((SMALL['dims'][i],), i + 0.5) for i in norms for kind in ('weight', 'bias')
        }
        names = renamed({**renamed(backbone, *renames), **output_norms}, ('^', 'backbone.'))
        return {'state_dict': {**names, 'neck.fpn_convs.0.conv.weight': torch.zeros(2, 2, 1, 1)}}

    return save


# Layout -> how to make it of timm's, outputs with a norm, tensors that belong to the classifier.
LAYOUTS = {
    'timm': (lambda state: state, (), 4),
    'the authors': (official, (), 4),
    'mmpretrain': (mmpretrain, (), 2),
    'mmpretrain, 1 x 1 convolutions': (mmpretrain_convolutions, (), 2),
    "the authors' detector": (detector(AUTHORS, range(4)), (0, 1, 2, 3), 0),
    "mmpretrain's, in mmdet's detector": (detector(MMPRETRAIN, range(4)), (0, 1, 2, 3), 0),
    "mmpretrain's, in mmdet's RetinaNet": (detector(MMPRETRAIN, range(1, 4)), (1, 2, 3), 0),
}
every_layout = pytest.mark.parametrize('layout', LAYOUTS)


@every_layout
def test_every_layout_is_read(layout, published, tmp_path):
    save, norms, num_classifier = LAYOUTS[layout]
    torch.save(save(published), tmp_path / 'weights.pth')
    model = ConvNeXt(SMALL, out_norm=dict(type='LN', eps=1e-6))
    report = load_pretrained(model, tmp_path / 'weights.pth')
    state = model.state_dict()
    assert len(report.loaded) == report.total == NUM_TENSORS + 2 * len(norms)
    assert len(report.left_out) == num_classifier
    assert set(report.new) == {f'out_norm{i}.{kind}' for i in range(4) if i not in norms for kind in ('weight', 'bias')}
    wanted = {key: value for key, value in published.items() if not key.startswith('head.')}
    assert len(wanted) == NUM_TENSORS and all(torch.equal(state[key], value) for key, value in wanted.items())
    assert all((state[f'out_norm{i}.{kind}'] == i + 0.5).all() for i in norms for kind in ('weight', 'bias'))
    assert all((state[f'out_norm{i}.weight'] == 1).all() for i in range(4) if i not in norms)


def test_the_variants_layout_is_read(published, tmp_path):
    whole = {key: value for key, value in published.items() if '.conv_dw.' not in key}
    half = {
        key: torch.rand(value.shape[0] // 2, 1, *value.shape[2:]) if value.ndim > 1 else value[: len(value) // 2]
        for key, value in published.items()
        if '.conv_dw.' in key
    }
    torch.save(variants({**whole, **half}), tmp_path / 'weights.pth')
    model = ConvNeXt(dict(SMALL, conv_ratio=1 / 2))
    report = load_pretrained(model, tmp_path / 'weights.pth')
    assert len(report.loaded) == NUM_TENSORS and len(report.left_out) == 4
    for key, value in half.items():
        assert torch.equal(model.state_dict()[key.replace('.conv_dw.', '.conv_dw.conv.')], value)


@every_layout
def test_own_names_pass_unchanged(layout, published):
    """What was converted once, or saved by a detector of this project, is not renamed again."""
    save, norms, _ = LAYOUTS[layout]
    content = save(published)
    content = content.get('state_dict', content.get('model', content))
    once = ConvNeXt.convert_state_dict({key.removeprefix('backbone.'): value for key, value in content.items()})
    twice = ConvNeXt.convert_state_dict(once)
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)
    assert {key.split('.')[0] for key in once if key.startswith('out_norm')} == {f'out_norm{i}' for i in norms}


def test_a_lone_output_norm_of_the_last_stage_is_kept(tmp_path):
    source = ConvNeXt(SMALL, out_indices=(3,), out_norm=dict(type='LN'))
    torch.nn.init.uniform_(source.out_norm3.weight)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = ConvNeXt(SMALL, out_indices=(3,), out_norm=dict(type='LN'))
    assert load_pretrained(model, tmp_path / 'weights.pth').new == ()
    assert torch.equal(model.out_norm3.weight, source.out_norm3.weight)


def check_refused(model: ConvNeXt, path, *words: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, path)
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('layout', ['timm', 'the authors', 'mmpretrain'])
def test_a_file_with_a_key_less_is_refused(layout, published, tmp_path):
    incomplete = {key: value for key, value in published.items() if key != 'stages.2.blocks.1.mlp.fc2.bias'}
    torch.save(LAYOUTS[layout][0](incomplete), tmp_path / 'weights.pth')
    check_refused(ConvNeXt(SMALL), tmp_path / 'weights.pth', '1 missing: stages.2.blocks.1.mlp.fc2.bias')


# The file's arch -> the backbone's.
MIX_UPS = [('tiny_k3_par1_4', 'tiny_k3_par1_8'), ('tiny', 'tiny_k3'), ('tiny_k3', 'tiny_k3_par1_2')]


@pytest.mark.parametrize(('written', 'asked'), MIX_UPS)
def test_a_file_of_another_variant_is_refused_and_recognised(written, asked, tmp_path):
    kernel, ratio, _ = VARIANTS[written]
    shapes = published_shapes(**TINY, kernel=kernel, ratio=ratio)
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / 'weights.pth')
    check_refused(ConvNeXt(asked, out_indices=(0,)), tmp_path / 'weights.pth', f'fits arch {written!r} ')


def test_a_file_of_another_family_is_recognised(tmp_path):
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in timm.create_model('inception_next_tiny').state_dict().items()}
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / 'weights.pth')
    check_refused(ConvNeXt('tiny', out_indices=(0,)), tmp_path / 'weights.pth', 'InceptionNeXt tiny')


BAD_ARCHS = [
    (dict(SMALL, kernel=4), 'kernel=4.*odd'),
    (dict(SMALL, conv_ratio=0), 'conv_ratio=0 .*share'),
    (dict(SMALL, conv_ratio=1.5), r'conv_ratio=1\.5'),
    (dict(SMALL, conv_ratio=1 / 16), 'at least one channel'),
    (dict(dims=(8, 16), depths=(1,)), 'differ in length'),
]


@pytest.mark.parametrize(('arch', 'message'), BAD_ARCHS)
def test_impossible_archs_say_what_is_allowed(arch, message):
    with pytest.raises(ValueError, match=message) as caught:
        ConvNeXt(arch)
    cause, remedy = str(caught.value).split('\n')
    assert cause and remedy
