"""Does every config build, train a step and predict?"""

import cv2
import numpy as np
import pytest
from leaves import BY_NAME, build_on_meta, load, parts_of
from mmengine.registry import DATASETS, init_default_scope
from tiny_sets import reduce, write_classes_of_own_data, write_coco, write_labels

import backbones
from dense.data.mini import write_mini
from dense.engine.launch import load_config, train
from dense.engine.launch import test as evaluate

# One leaf of each recipe: the smallest. The others train in the slow suite.
QUICK = [
    'mask-rcnn_inceptionnext-a_fpn_1x_coco',
    'mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160',
    'mask-rcnn_fasternet-t0_fpn_ms-crop-3x_coco',
    'retinanet_inceptionnext-a_fpn_1x_coco',
    'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512',
    'upernet_inceptionnext-a_450i_mini-128x128',
    'semantic-fpn_fasternet-t0_8xb4-40k_ade20k-512x512',
]
OF_EACH_RECIPE = [
    'mask-rcnn_inceptionnext-a_fpn_1x_coco',
    'mask-rcnn_inceptionnext-a_fpn_400i_coco-320x320',
    'mask-rcnn_inceptionnext-a_fpn_400i_own-320x320',
    'mask-rcnn_inceptionnext-a_fpn_250i_mini-160x160',
    'mask-rcnn_inceptionnext-a_fpn_amp-ms-crop-3x_coco',
    'mask-rcnn_convnext-t-k3-par1-16_fpn_1x_coco',
    'mask-rcnn_fasternet-t0_fpn_1x_coco',
    'mask-rcnn_fasternet-t0_fpn_ms-crop-3x_coco',
    'mask-rcnn_r50_fpn_ms-3x_coco',
    'cascade-mask-rcnn_inceptionnext-t_fpn_amp-ms-crop-3x_coco',
    'retinanet_inceptionnext-a_fpn_1x_coco',
    'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512',
    'upernet_inceptionnext-a_400i_own-256x256',
    'upernet_inceptionnext-a_450i_mini-128x128',
    'upernet_r50_4xb4-160k_ade20k-512x512',
    'semantic-fpn_fasternet-t0_8xb4-40k_ade20k-512x512',
]
DENSE = sorted(name for name in BY_NAME if parts_of(name)['method'] != 'classifier')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Root of a tiny data set for each that the configs name."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('data')
    write_coco(root / 'coco', CocoDataset.METAINFO['classes'])
    write_labels(root / 'ade20k', 150)
    write_coco(root / 'own', ('bolt', 'nut', 'gear'))
    write_labels(root / 'own', 3)
    write_classes_of_own_data(root / 'own')
    write_mini(root / 'mini', num_train=2, num_val=1)
    return root


def train_one_step(name, root, work_dir):
    cfg = load_config(BY_NAME[name], data_root=root / parts_of(name)['dataset'], work_dir=work_dir)
    reduce(cfg)
    runner = train(cfg)
    assert runner.iter == 1
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].current())
    scope = parts_of(name)['method']
    metric = {'upernet': 'mIoU', 'semantic-fpn': 'mIoU', 'retinanet': 'coco/bbox_mAP'}.get(scope, 'coco/segm_mAP')
    assert f'val/{metric}' in scalars
    return runner.model


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OF_EACH_RECIPE]
)
def test_one_step_and_one_prediction(name, data, tmp_path):
    model = train_one_step(name, data, tmp_path)
    if parts_of(name)['arch'] == 'r50':  # another package's class, without output norms
        return
    backbone = load(name).model.backbone
    own = getattr(backbones, backbone.type)(backbone.arch).state_dict()
    state = model.backbone.state_dict()
    assert set(own) < set(state)
    norms = set(state) - set(own)
    assert {key.split('.')[0] for key in norms} == {f'out_norm{i}' for i in model.backbone.out_indices}
    assert {int(state[key]) for key in norms if key.endswith('num_batches_tracked')} <= {1}


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in DENSE if name not in OF_EACH_RECIPE])
def test_one_step_and_one_prediction_of_every_other_leaf(name, data, tmp_path):
    train_one_step(name, data, tmp_path)


@pytest.mark.parametrize('name', sorted(BY_NAME))
def test_every_leaf_builds(name):
    model = build_on_meta(name)
    assert sum(p.numel() for p in model.parameters()) > 1e6


@pytest.mark.parametrize(
    'name',
    [
        'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512',
        pytest.param('upernet_convnext-t_4xb4-amp-160k_ade20k-512x512', marks=pytest.mark.slow),
        pytest.param('semantic-fpn_inceptionnext-a_8xb4-40k_ade20k-512x512', marks=pytest.mark.slow),
    ],
)
def test_single_scale_and_multi_scale_testing(name, data, tmp_path):
    cfg = load_config(BY_NAME[name], data_root=data / 'ade20k', work_dir=tmp_path)
    reduce(cfg)
    cfg.optim_wrapper.type = 'OptimWrapper'  # a CPU takes long for mixed precision
    train(cfg)
    for tta in (False, True):
        metrics = evaluate(cfg, tmp_path / 'iter_1.pth', tta=tta)
        assert 0 <= metrics['mIoU'] <= 100


def test_label_zero_does_not_count(data):
    """Value v of an ADE20K label map is class v - 1, and 0 is ignored, in both data sets that read such maps."""
    for name, root in (
        ('upernet_inceptionnext-a_4xb4-160k_ade20k-512x512', 'ade20k'),
        ('upernet_inceptionnext-a_400i_own-256x256', 'own'),
    ):
        cfg = load_config(BY_NAME[name], data_root=data / root)
        init_default_scope(cfg.default_scope)
        sample = DATASETS.build(cfg.val_dataloader.dataset)[0]
        path = sample['data_samples'].seg_map_path
        raw = cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(int)
        expected = np.where(raw == 0, 255, raw - 1)
        np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data[0].numpy(), expected)
