"""Writes tables of all models, with the size counted here next to the published one, into the README and the docs.

``docs/models.md`` is written as a whole; in the README only the text between two markers is replaced.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mmengine.config import Config

from dense.analysis.complexity import Complexity, build_on_meta, count_model, usual_shape
from dense.analysis.published import IN1K_384, PUBLISHED, Published
from dense.console.tables import markdown
from dense.engine.config import load_config
from dense.errors import UserError
from dense.project import PROJECT, leaves

README, MODELS_PAGE = PROJECT / 'README.md', PROJECT / 'docs' / 'models.md'
START, END = '<!-- models: written by tools/table.py -->', '<!-- /models -->'
NONE = ''
HEADER = ('backbone', 'config', 'params M', 'published', 'MACs G', 'published', 'published score')
README_HEADER = ('method', *HEADER[1:])
TEXTS = (0, 1, 6)  # columns


@dataclass(frozen=True)
class Group:
    """Configs that share one table.

    Attributes:
        title: Heading.
        folder: Below ``configs/``.
        part: What the names of its configs have in common.
        is_dense: Whether it is detection or segmentation, which the README's table shows.
    """

    title: str
    folder: str
    part: str
    is_dense: bool = True

    def holds(self, path: Path) -> bool:
        """Tell whether a config belongs in this table."""
        return path.parent.name == self.folder and self.part in path.stem


GROUPS = (
    Group('Classification, ImageNet-1K', 'imagenet', '_in1k-', is_dense=False),
    Group('Mask R-CNN 1x, COCO', 'mask_rcnn', '_1x_coco'),
    Group('Mask R-CNN 3x, COCO', 'mask_rcnn', '3x_coco'),
    Group('Cascade Mask R-CNN 3x, COCO', 'cascade_mask_rcnn', '3x_coco'),
    Group('RetinaNet 1x, COCO', 'retinanet', '_1x_coco'),
    Group('UperNet 160k, ADE20K', 'upernet', '160k_ade20k'),
    Group('Semantic FPN 40k, ADE20K', 'semantic_fpn', '40k_ade20k'),
)
INTRODUCTION = """\
# Models

Written by `tools/table.py`; do not edit. One line for each config of the papers' tables: its parameters and
multiply-accumulates (MACs) as `tools/complexity.py` counts them, beside the published figures. A figure in parentheses
was not printed but counted from the authors' released code. Scores and speeds are the authors', none was measured here.
MS: multi-scale testing (`tools/test.py --tta`).

Speed: [IN] on an A100 in TF32 and a 2080Ti in FP32, batch 128 reduced until it fits, the better of channels first and
last; segmentors in images per second, at the size of the MACs. [FN] on a 2080Ti, batch 32 for classifiers and 1 for
detectors, and batch 1 on one thread of a Core i9-9900X and a Cortex-A72, batch norms fused. `tools/benchmark.py`
measures by the same protocols.

Sources: [IN] [InceptionNeXt](https://arxiv.org/abs/2303.16900v3), [FN] [FasterNet](https://arxiv.org/abs/2303.03667),
[CNX] [ConvNeXt](https://arxiv.org/abs/2201.03545), [MO] [MambaOut](https://arxiv.org/abs/2405.07992)."""

PARENTHESES = """\
In parentheses: counted from the authors' released code. MS: multi-scale testing (`--tta`). Every config, also those
without a published score, with sources and published speed: [docs/models.md](docs/models.md)."""
FASTERNET_COUNT = "MACs printed in FasterNet's paper, ResNet-50's included: {}"


@dataclass(frozen=True)
class Model:
    """A config, counted.

    Attributes:
        path: The config file.
        family: Type of its backbone.
        arch: Arch of its backbone, or its depth.
        count: Its size.
    """

    path: Path
    family: str
    arch: str
    count: Complexity

    @property
    def label(self) -> str:
        """Family, arch, and the image size if it is not the usual one."""
        size = f' {IN1K_384[0]}x{IN1K_384[1]}' if self.count.shape == IN1K_384 else ''
        return f'{self.family} {self.arch}{size}'

    @property
    def published(self) -> Published | None:
        """What was published about it."""
        return PUBLISHED.get(self.path.stem)


def describe(path: Path) -> Model:
    """Read a config and count its model at its usual shape."""
    cfg: Config = load_config(path)
    backbone = cfg.model.backbone
    count = count_model(build_on_meta(cfg), usual_shape(cfg), name=path.stem)
    return Model(path, backbone.type, str(backbone.get('arch') or backbone.depth), count)


def table_leaves(groups: Iterable[Group] = GROUPS) -> list[Path]:
    """Return the configs in the tables, without those for your own data and for generated data."""
    paths = leaves()
    return [path for group in groups for path in paths if group.holds(path)]


def models_page(models: Sequence[Model]) -> str:
    """Return the text of ``docs/models.md``."""
    return '\n\n'.join([INTRODUCTION, *(_section(group, models) for group in GROUPS)]) + '\n'


def readme_leaves() -> list[Path]:
    """Return the configs that the README shows: detectors and segmentors with a published score."""
    paths = table_leaves(group for group in GROUPS if group.is_dense)
    return [path for path in paths if path.stem in PUBLISHED and PUBLISHED[path.stem].score]


def readme_table(models: Sequence[Model]) -> str:
    """Return the README's table.

    Args:
        models: Those of :func:`readme_leaves`, in any order.
    """
    rows = [
        [group.title, f'[{m.label}]({_relative(m.path)})', *_sizes(m), m.published.score if m.published else NONE]
        for group in GROUPS
        for m in _by_size([m for m in models if group.holds(m.path)])
    ]
    notes = dict.fromkeys(m.published.undercount for m in models if m.published and m.published.undercount)
    lines = [markdown(rows, header=README_HEADER, texts=TEXTS), PARENTHESES]
    return '\n\n'.join([*lines, *(FASTERNET_COUNT.format(note) for note in notes)])


def update(models: Sequence[Model]) -> list[Path]:
    """Write both tables, and return the files that changed."""
    changed = []
    for path, text in _texts(models):
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed


def outdated(models: Sequence[Model]) -> list[Path]:
    """Return the files whose tables are not what :func:`update` would write."""
    return [path for path, text in _texts(models) if not path.is_file() or path.read_text() != text]


def replace_between(text: str, table: str) -> str:
    """Put a table between the markers of a text.

    Raises:
        UserError: The text does not have both markers, in this order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError('the README lacks the markers of the table', f'put {START} and {END} where it belongs')
    return f'{before}{START}\n{table}\n{END}{after}'


def row(model: Model) -> list[str]:
    """Return the cells of a model in ``docs/models.md``."""
    published = model.published
    link = f'[{model.path.stem}](../{_relative(model.path)})'
    score = f'{published.score} {published.source}'.strip() if published else NONE
    return [model.label, link, *_sizes(model), score]


def _relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def _texts(models: Sequence[Model]) -> list[tuple[Path, str]]:
    shown = set(readme_leaves())
    readme = replace_between(README.read_text(), readme_table([m for m in models if m.path in shown]))
    return [(README, readme), (MODELS_PAGE, models_page(models))]


def _section(group: Group, models: Sequence[Model]) -> str:
    found = _by_size([m for m in models if group.holds(m.path)])
    shapes = sorted({m.count.shape for m in found})
    lines = [
        f'## {group.title}',
        'MACs at ' + ' and '.join(f'{height}x{width}' for height, width in shapes) + '.',
        markdown([row(m) for m in found], header=HEADER, texts=TEXTS),
    ]
    notes = dict.fromkeys(m.published.undercount for m in found if m.published and m.published.undercount)
    return '\n\n'.join([*lines, *(FASTERNET_COUNT.format(note) for note in notes), *_speeds(found)])


def _speeds(models: Sequence[Model]) -> list[str]:
    timed = [(m.label, m.published.speed) for m in models if m.published and m.published.speed]
    devices = list(dict.fromkeys(device for _, speed in timed for device in speed))
    rows = [[label, *(f'{speed[d]:g}' if d in speed else NONE for d in devices)] for label, speed in timed]
    if not rows:
        return []
    return ['Published speed:', markdown(rows, header=['backbone', *devices])]


def _by_size(models: Sequence[Model]) -> list[Model]:
    """Order by family, then by size."""
    families = sorted({m.family for m in models})
    return sorted(models, key=lambda m: (families.index(m.family), m.count.macs, -m.count.params))


def _sizes(model: Model) -> list[str]:
    published = model.published
    params, macs = model.count.params / 1e6, model.count.macs / 1e9
    if published is None:
        return [_rounded(params), NONE, _rounded(macs), NONE]
    return [
        _rounded(params),
        _figure(published.params, published.derived_params),
        _rounded(macs),
        _figure(published.macs, published.derived_macs),
    ]


def _figure(printed: Decimal | None, derived: Decimal | None) -> str:
    return ' '.join([*([str(printed)] if printed else []), *([f'({derived})'] if derived else [])])


def _rounded(number: float) -> str:
    return f'{number:.2f}' if number < 100 else f'{number:.1f}'
