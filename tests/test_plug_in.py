"""Do the backbones work in other people's projects, by the README's own lines?

MMDetection and MMSegmentation are driven by their stock ``tools/train.py`` and a stock config, outside of the clone.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import InceptionNeXt
from backbones.download import cached_path
from backbones.records import WEIGHTS
from dense.data.mini import THING_CLASSES, write_mini

PROJECT = Path(__file__).resolve().parent.parent
STEPS = 2
# Below the README's lines: small pictures, few steps, generated data. `{root}` is the data set's.
COMMON = f"""
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={STEPS}, val_interval=100)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
param_scheduler = []
default_hooks = dict(checkpoint=dict(by_epoch=False, interval={STEPS}), logger=dict(interval=1))
"""
DETECTION = """
model['neck'] = dict(in_channels=[96, 192, 384, 768])
model['roi_head'] = dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8))
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root={root!r}, ann_file='instances_training.json', data_prefix=dict(img='images/training/'),
        metainfo=dict(classes={classes!r}),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(96, 96), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
)
"""
SEGMENTATION = """
model['pretrained'] = None
model['data_preprocessor'] = dict(size=(64, 64))
model['decode_head'] = dict(in_channels=[96, 192, 384, 768])
model['auxiliary_head'] = dict(in_channels=384)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root={root!r},
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='Resize', scale=(96, 96)),
            dict(type='RandomCrop', crop_size=(64, 64)),
            dict(type='PackSegInputs'),
        ],
    ),
)
"""
STOCK = {
    'mmdet': ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', DETECTION),
    'mmseg': ('upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', SEGMENTATION),
}
PLAIN = """
import sys, torch
from mmengine.config import Config
from mmengine.registry import MODELS

cfg = Config.fromfile('plain.py')
backbone = MODELS.build(cfg.model.backbone)
backbone.init_weights()
print([tuple(y.shape[1:]) for y in backbone.eval()(torch.zeros(1, 3, 64, 64))])
print(sorted({name.split('.')[0] for name in sys.modules} & {'dense', 'mmcv', 'mmdet', 'mmseg'}))
"""


def snippet() -> str:
    """The README's lines, as they stand there."""
    (found,) = re.findall(r'```python\n(custom_imports = .*?)```', (PROJECT / 'README.md').read_text(), re.DOTALL)
    return found


def run(*command: str | Path, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, 'PYTHONPATH': str(PROJECT), 'OMP_NUM_THREADS': '1', 'TORCH_HOME': str(home)}
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of PyTorch's downloads, in which the weights lie that the README names, with other numbers."""
    root = tmp_path_factory.mktemp('home')
    folder = root / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    torch.save(InceptionNeXt('tiny').state_dict(), cached_path(WEIGHTS['inceptionnext_tiny'].url, folder))
    return root


@pytest.mark.slow
@pytest.mark.parametrize('package', STOCK)
def test_stock_training_commands_take_the_readmes_lines(package: str, home: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    stock = Path(spec.origin).parent / '.mim'
    base, changes = STOCK[package]
    data = write_mini(tmp_path / 'data', num_train=2, num_val=1)
    changes = changes.format(root=str(data.root), classes=THING_CLASSES)
    text = f'_base_ = {str(stock / "configs" / base)!r}\n{snippet()}{changes}{COMMON}'
    (tmp_path / 'mine.py').write_text(text)
    done = run(sys.executable, stock / 'tools' / 'train.py', 'mine.py', cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'work_dirs' / 'mine' / f'iter_{STEPS}.pth').is_file()
    log = done.stdout + done.stderr
    assert re.search(r'loaded \d+ of \d+ tensors', log), log[-3000:]
    losses = [float(loss) for loss in re.findall(r' loss: ([\d.]+)', log)]
    assert len(losses) == STEPS and all(0 < loss < 100 for loss in losses)


def test_backbones_alone_serve_a_plain_project(home: Path, tmp_path: Path) -> None:
    lines = [line for line in snippet().replace("['dense']", "['backbones']").splitlines() if '_delete_' not in line]
    (tmp_path / 'plain.py').write_text('\n'.join(lines).replace('SyncBN', 'BN'))
    done = run(sys.executable, '-c', PLAIN, cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    shapes, imported = done.stdout.splitlines()[-2:]
    assert shapes == '[(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]'
    assert imported == '[]'
