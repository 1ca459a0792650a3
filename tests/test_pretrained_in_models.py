"""Are the weights that ``init_cfg`` names really in the detector and the segmentor when training starts?"""

from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config

import dense  # noqa: F401  the OpenMMLab packages run only after it
from backbones.serialization import CheckpointError

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
CASES = {
    'mmdet': CONFIGS / 'mask_rcnn' / 'mask-rcnn_inceptionnext-a_fpn_1x_coco.py',
    'mmseg': CONFIGS / 'upernet' / 'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512.py',
}


def build(scope: str, checkpoint: str):
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(CASES[scope])
    init_default_scope(scope)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('scope', CASES)
def test_the_weights_are_in_the_model(scope, tmp_path):
    torch.manual_seed(0)
    published = timm.create_model('inception_next_atto').state_dict()
    torch.save(published, tmp_path / 'weights.pth')
    model = build(scope, str(tmp_path / 'weights.pth'))
    model.init_weights()
    state = model.state_dict()
    compared = [name for name in published if not name.startswith('head.')]
    assert len(compared) == 220
    assert [name for name in compared if not torch.equal(state[f'backbone.{name}'], published[name])] == []


@pytest.mark.parametrize('scope', CASES)
def test_weights_that_do_not_fit_stop_the_model(scope, tmp_path):
    torch.save(timm.create_model('inception_next_tiny').state_dict(), tmp_path / 'weights.pth')
    model = build(scope, str(tmp_path / 'weights.pth'))
    with pytest.raises(CheckpointError, match="fits arch 'tiny'"):
        model.init_weights()
