"""Do the recipes train with one image per GPU, by the options that configs/README.md gives for it?"""

import re

import pytest
import torch
from leaves import BY_NAME, parts_of
from mmengine.config import ConfigDict
from tiny_sets import reduce, write_labels
from torch import nn

from dense.console.explain_error import explain
from dense.engine.launch import load_config, train

GROUPS = dict(type='GN', num_groups=8)
HEADS = {'model.decode_head.norm_cfg': GROUPS, 'model.auxiliary_head.norm_cfg': GROUPS}
UPERNET = {
    'inceptionnext-a_4xb4': {'model.backbone.out_norm': dict(type='GN', num_groups=1), **HEADS},
    'fasternet-s_4xb4': {'model.backbone.out_norm': dict(type='LN', eps=1e-6), **HEADS},
    'r50_4xb4': HEADS,
    'convnext-t_4xb4-amp': HEADS,
}
FROZEN_STATISTICS = {'model.backbone.norm_eval': True}


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_labels(root, 150)
    return root


def train_on_one_image(name, root, work_dir, options):
    cfg = load_config(BY_NAME[name], data_root=root, work_dir=work_dir, options=options)
    reduce(cfg)
    cfg.train_dataloader.batch_size = 1
    cfg.optim_wrapper.type = 'OptimWrapper'  # a CPU takes long for mixed precision
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=1)
    runner = train(cfg)
    assert torch.isfinite(torch.tensor(runner.message_hub.get_scalar('train/loss').current()))
    return runner.model


@pytest.mark.parametrize(
    'arch', [arch if arch == next(iter(UPERNET)) else pytest.param(arch, marks=pytest.mark.slow) for arch in UPERNET]
)
def test_upernet_without_batch_statistics(arch, ade20k, tmp_path):
    name = f'upernet_{arch}-160k_ade20k-512x512'
    model = train_on_one_image(name, ade20k, tmp_path, {**UPERNET[arch], **FROZEN_STATISTICS})
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert bool(norms) is not arch.startswith('convnext')
    assert {int(norm.num_batches_tracked) for norm in norms} <= {0}


def test_upernet_says_what_to_do(ade20k, tmp_path):
    with pytest.raises(ValueError) as caught:
        train_on_one_image('upernet_inceptionnext-a_4xb4-160k_ade20k-512x512', ade20k, tmp_path, {})
    cause, remedy = explain(caught.value)
    assert 'one value per channel' in cause
    assert 'train_dataloader.batch_size' in remedy and 'configs/README.md' in remedy


def test_semantic_fpn_needs_no_change(ade20k, tmp_path):
    """Its smallest map has more than one position, so that batch statistics exist even for one image."""
    model = train_on_one_image('semantic-fpn_inceptionnext-a_8xb4-40k_ade20k-512x512', ade20k, tmp_path, {})
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms)  # on one device it is a plain batch norm


def test_every_family_is_tried():
    said = [parts_of(name) for name in BY_NAME]
    families = {parts['arch'].split('-')[0] for parts in said if parts['method'] == 'upernet'}
    assert {re.split('[-_]', arch)[0] for arch in UPERNET} == families
