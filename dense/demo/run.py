"""The demonstration: trains a detector and a segmenter from scratch, with pictures, in 10 to 13 minutes on two cores.

Generated scenes are written, an InceptionNeXt-Atto is pretrained on generated pictures of single objects, and both
models start from its weights. Their recipes are the leaves in ``configs/mini``, which also train from scratch.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from mmengine.config import Config, ConfigDict
from rich.markup import escape

from backbones import InceptionNeXt
from dense.console.output import console, notice
from dense.console.progress import ProgressBarHook, clock
from dense.console.tables import plain
from dense.data.mini import write_crops, write_mini
from dense.demo.pretrain import Pretrained, pretrain
from dense.engine.launch import load_config, test, train
from dense.engine.resume import latest_checkpoint
from dense.errors import UserError

MASK_RCNN = 'configs/mini/mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160.py'
UPERNET = 'configs/mini/upernet_inceptionnext-a_450i_mini-128x128.py'

_PRETRAIN_STEPS = 160
_MARK = '.demo'  # Marks a folder as the demo's own, which a later run may empty.


@dataclass(frozen=True)
class Score:
    """One figure of the final table.

    Attributes:
        name: For example ``box AP50``.
        value: Measured on the held-out images, 0..1.
        bar: The value to reach.
    """

    name: str
    value: float
    bar: float

    @property
    def reached(self) -> bool:
        """Whether the value is at least the bar."""
        return self.value >= self.bar


@dataclass(frozen=True)
class Part:
    """One of the two models.

    Attributes:
        title: Its name in the output.
        config: Leaf config, relative to the project.
        folder: Its folder below the demo's.
        bars: Metric of the evaluator -> name in the table, divisor that brings the metric to 0..1, bar.
    """

    title: str
    config: str
    folder: str
    bars: dict[str, tuple[str, float, float]]


PARTS = (
    Part(
        'Mask R-CNN',
        MASK_RCNN,
        'mask_rcnn',
        {'coco/bbox_mAP_50': ('box AP50', 1, 0.60), 'coco/segm_mAP_50': ('mask AP50', 1, 0.60)},
    ),
    Part('UperNet', UPERNET, 'upernet', {'mIoU': ('mIoU', 100, 0.70)}),
)


def run_demo(work_dir: str | Path, *, seed: int = 0) -> list[Score]:
    """Write the data, pretrain, train and evaluate both models, save pictures and show the table.

    Args:
        work_dir: Folder for everything; what an earlier demo left there is removed.
        seed: Seed of the data and of both trainings.

    Returns:
        The scores, whether or not they reach their bars.

    Raises:
        UserError: The folder holds other files, or cannot be written.
    """
    start, root = time.monotonic(), _fresh_folder(Path(work_dir))
    _headline(1, 'writing the scenes')
    data = write_mini(root / 'data', seed)
    crops = write_crops(root / 'crops', seed)
    notice(f'{data.num_images["training"]} scenes to train on, {data.num_images["validation"]} held out: {data.root}')
    _headline(2, 'pretraining the backbone on pictures of single objects')
    weights = _pretrain(crops, root / 'pretrained' / 'inceptionnext_atto.pth', seed)
    notice(f'names {weights.accuracy:.0%} of the held-out objects: {weights.checkpoint}')
    scores = []
    for number, part in enumerate(PARTS, start=3):
        _headline(number, f'training and testing {part.title}')
        scores += _train_and_test(part, root, weights.checkpoint, seed)
    _show(scores, root, time.monotonic() - start)
    return scores


def _fresh_folder(root: Path) -> Path:
    """Make the demo's folder; the folder of an earlier demo is emptied.

    Raises:
        UserError: It is not empty and not from a demo.
    """
    if root.exists() and not (root / _MARK).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f'{root} holds files that are not from a demo and would be removed',
            'use another folder with --work-dir',
        )
    try:
        if root.exists():
            shutil.rmtree(root)
        root.mkdir(parents=True)
        (root / _MARK).touch()
    except OSError as error:
        raise UserError(f'cannot write into {root}: {error.strerror}', 'use another folder with --work-dir') from error
    return root


def _pretrain(crops: Path, checkpoint: Path, seed: int) -> Pretrained:
    torch.manual_seed(seed)
    backbone = InceptionNeXt('atto', out_indices=(3,), layer_scale_init_value=1.0)
    bar, run = ProgressBarHook(), SimpleNamespace(iter=0, max_iters=_PRETRAIN_STEPS)

    def advance(step: int, loss: float) -> None:
        bar.after_train_iter(run, step - 1, outputs={'loss': loss})

    bar.before_train(run)
    try:
        return pretrain(backbone, crops, checkpoint, steps=_PRETRAIN_STEPS, batch_size=48, seed=seed, on_step=advance)
    finally:
        bar.after_train(run)


def _train_and_test(part: Part, root: Path, weights: Path, seed: int) -> list[Score]:
    """Train and test one model; its logs, checkpoint and pictures go below ``root / part.folder``."""
    cfg = demo_config(part, root, weights, seed)
    train(cfg)
    checkpoint = latest_checkpoint(cfg.work_dir)
    assert checkpoint is not None, 'training ends with a checkpoint'
    metrics = test(cfg, checkpoint, out=root / part.folder / 'metrics.json', show_dir=root / part.folder / 'pictures')
    return [Score(name, metrics[key] / unit, bar) for key, (name, unit, bar) in part.bars.items()]


def demo_config(part: Part, root: Path, weights: Path, seed: int) -> Config:
    """Read a part's leaf config and start its backbone from the pretrained weights."""
    cfg = load_config(part.config, work_dir=root / part.folder, data_root=root / 'data', seed=seed)
    cfg.model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(weights))
    # The test afterwards reads the checkpoint back; validating the same weights would only take time.
    cfg.train_cfg.val_begin = cfg.train_cfg.max_iters + 1
    return cfg


def _headline(number: int, text: str) -> None:
    console().print(f'[bold]\\[{number}/{2 + len(PARTS)}] {escape(text)}[/bold]')


def _show(scores: list[Score], root: Path, seconds: float) -> None:
    rows = [[s.name, f'{s.value:.3f}', f'{s.bar:.2f}', 'reached' if s.reached else 'missed'] for s in scores]
    console().print(f'\n[bold]On the held-out scenes, after {clock(seconds)} minutes[/bold]')
    notice(plain(rows, header=['metric', 'value', 'to reach', ''], texts=(0, 3)) + '\n')
    for part in PARTS:
        folder = root / part.folder
        notice(f'{part.title}')
        notice(f'  pictures    {folder / "pictures"} (sheet.png shows some)')
        notice(f'  checkpoint  {latest_checkpoint(folder)}')
        notice(f'  log         {min(folder.glob("*/*.log"), default=folder)}')
