"""Do classifiers train, resume, test and fail like detectors and segmenters, by the same commands?"""

import json

import numpy as np
import pytest
import timm
import torch
from leaves import BY_NAME, EXPECTED
from mmengine.dataset import default_collate
from PIL import Image

from backbones import InceptionNeXt
from backbones.weights import load_pretrained
from dense.console.explain_error import explain
from dense.engine.launch import load_config, train
from dense.engine.launch import test as evaluate
from dense.errors import UserError

OWN = 'classifier_inceptionnext-a_30e_own-64x64'
CLASSES = ('ant', 'bee', 'cat')
TINY = {
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.batch_size': 3,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'test_dataloader.batch_size': 3,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
    'train_cfg.max_epochs': 1,
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Images of one colour and some noise: 6 of each class to train on, 8 to validate on."""
    root, rng = tmp_path_factory.mktemp('folders'), np.random.default_rng(0)
    for split, numbers in (('train', (6, 6, 6)), ('val', (3, 3, 2))):
        for label, (name, number) in enumerate(zip(CLASSES, numbers, strict=True)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f'{i}.png')
    return root


def config(root, work_dir, name=OWN, resume=None, **options):
    return load_config(
        BY_NAME[name], data_root=root, work_dir=work_dir, options={**TINY, **options}, resume=resume, seed=None
    )


def losses(work_dir):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row['step']: (row['loss'], row['lr']) for row in rows if 'loss' in row}


# Everything that draws random numbers or keeps a state: mixing, erasing, drop path, dropout, gathered gradients, the
# average of the weights, half precision, and a size that changes in the second epoch.
EVERYTHING = {
    'model.train_cfg': dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erase_prob=0.5),
    'model.backbone.drop_path_rate': 0.3,
    'model.head.dropout': 0.5,
    'train_dataloader.dataset.transform.auto_augment': 'rand-m9-mstd0.5-inc1',
    'train_dataloader.batch_sampler.accumulative_counts': 2,
    'optim_wrapper.accumulative_counts': 2,
    'optim_wrapper.type': 'DenseAmpOptimWrapper',
    'optim_wrapper.dtype': 'bfloat16',  # on processors without it, too
    'custom_hooks': [
        dict(type='EMAHook', momentum=0.1, interval=2, update_buffers=True),
        dict(type='TrainSizeHook', epoch=1, size=96),
    ],
    'train_cfg.max_epochs': 3,
    'default_hooks.logger.interval': 1,
}
WORKERS = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run(root, tmp_path):
    whole = train(config(root, tmp_path / 'whole', **EVERYTHING))
    before = losses(tmp_path / 'whole')
    assert list(before) == list(range(1, 13))  # 18 images: four full batches, two updates, of 3 epochs
    assert len({loss for loss, _ in before.values()}) == 12, 'equal steps would prove nothing'
    start = str(tmp_path / 'whole' / 'epoch_2.pth')
    resumed = train(config(root, tmp_path / 'resumed', resume=start, **EVERYTHING, **WORKERS))
    assert losses(tmp_path / 'resumed') == {step: row for step, row in before.items() if step > 8}
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert len(states[0]) == 226
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
    files = [torch.load(tmp_path / name / 'epoch_3.pth', weights_only=True) for name in ('whole', 'resumed')]
    for key in ('state_dict', 'ema_state_dict'):  # the average is what is saved first
        assert files[0][key].keys() == files[1][key].keys()
        assert all(torch.equal(files[0][key][name], files[1][key][name]) for name in files[0][key])
    assert any(not torch.equal(files[0]['state_dict'][key], states[0][key]) for key in states[0])


@pytest.mark.slow
def test_training_size_changes_at_its_epoch(root, tmp_path):
    cfg = config(root, tmp_path, **{**EVERYTHING, **WORKERS, 'train_cfg.max_epochs': 2})
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    sizes = []

    class SizeSpy(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            sizes.append(tuple(data_batch['inputs'].shape))

    HOOKS.register_module(module=SizeSpy, force=True)
    try:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='SizeSpy')]
        train(cfg)
    finally:
        HOOKS.module_dict.pop('SizeSpy')
    assert sizes == [(4, 3, 64, 64)] * 4 + [(4, 3, 96, 96)] * 4


def test_learns_and_its_backbone_loads_elsewhere(root, tmp_path):
    runner = train(config(root, tmp_path, **{'train_cfg.max_epochs': 4, 'param_scheduler.0.warmup': 0}))
    top1 = runner.message_hub.get_scalar('val/top1').data[0]
    assert list(top1)[-1] > 60  # chance is 33
    assert 'val/top5' not in runner.message_hub.log_scalars  # of three classes
    backbone = InceptionNeXt('atto')
    report = load_pretrained(backbone, tmp_path / 'epoch_4.pth')
    assert len(report.loaded) == report.total == 220
    assert torch.equal(backbone.stem[0].weight, runner.model.backbone.stem[0].weight)
    assert (tmp_path / 'last_checkpoint').is_file() and list(tmp_path.glob('best_top1_*.pth'))


def published_atto(path, num_classes):
    """A file such as the authors release: plain keys, no wrapping."""
    torch.manual_seed(0)
    model = timm.create_model('inception_next_atto', num_classes=num_classes)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith('gamma'):
                value.fill_(0.5)
        model.head.fc2.weight.mul_(50)
    torch.save(model.state_dict(), path)
    return model.eval()


def test_published_file_is_tested_as_it_is(root, tmp_path):
    model = published_atto(tmp_path / 'atto.pth', 3)
    name = 'classifier_inceptionnext-a_8xb160-450e_in1k-224x224'
    small = {'test_dataloader.dataset.transform.size': 64}
    cfg = config(root, tmp_path / 'work', name, **small)
    metrics = evaluate(cfg, tmp_path / 'atto.pth', out=tmp_path / 'metrics.json', show_dir=tmp_path / 'pictures')
    assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 8 + 1
    from timm.data import create_transform

    transform = create_transform(64, interpolation='bicubic', crop_pct=0.875)
    right = 0
    for label, folder in enumerate(CLASSES):
        images = [transform(Image.open(path)) for path in sorted((root / 'val' / folder).iterdir())]
        with torch.no_grad():
            right += int((model(default_collate(images)).argmax(1) == label).sum())
    assert metrics == dict(top1=pytest.approx(100 * right / 8))
    sheet = np.asarray(Image.open(tmp_path / 'pictures/sheet.png'))
    assert sheet.shape[0] > 2 * 320  # three classes, one picture of each, two in a row
    log = '\n'.join(path.read_text() for path in (tmp_path / 'work').rglob('*.log'))
    assert 'Load checkpoint from' in log and 'unexpected key' not in log


def test_published_file_of_other_classes_is_an_error_in_testing_and_a_start_in_training(root, tmp_path, capfd):
    published_atto(tmp_path / 'atto.pth', 10)
    with pytest.raises(UserError, match=r'224 of 226 tensors match; others are head\.fc2\.weight, head\.fc2\.bias\n'):
        evaluate(config(root, tmp_path / 'test'), tmp_path / 'atto.pth')
    cfg = config(root, tmp_path / 'train', **{'model.backbone.layer_scale_init_value': 1e-6})
    cfg.load_from = str(tmp_path / 'atto.pth')
    train(cfg)
    assert 'loaded 224 of 226 tensors; new: head.fc2.bias, head.fc2.weight' in capfd.readouterr().out


@pytest.mark.parametrize(
    'name',
    [
        'classifier_fasternet-t0_8xb512-300e_in1k-224x224',
        pytest.param('classifier_inceptionnext-t_8xb128-300e_in1k-224x224', marks=pytest.mark.slow),
        pytest.param('classifier_convnext-t_8xb128-300e_in1k-224x224', marks=pytest.mark.slow),
    ],
)
def test_one_update_of_each_recipe(name, root, tmp_path):
    assert name in EXPECTED['ImageNet']
    sizes = {f'{split}_dataloader.dataset.transform.size': 32 for split in ('train', 'val', 'test')}
    runner = train(config(root, tmp_path, name, **sizes))
    assert runner.iter == 4
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert runner.model.head.num_classes == 3
    assert runner.message_hub.get_scalar('val/top1').current() >= 0


def copy_tree(source, target):
    for path in source.rglob('*.png'):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def without_a_validation_class(root):
    for path in (root / 'val/cat').iterdir():
        path.unlink()
    (root / 'val/cat').rmdir()


def with_an_empty_class(root):
    for path in (root / 'train/bee').iterdir():
        path.unlink()


def without_training_data(root):
    (root / 'train').rename(root / 'training')


def with_a_damaged_validation_image(root):
    (root / 'val/bee/1.png').write_bytes(b'no image')


@pytest.mark.parametrize(
    ('harm', 'options', 'cause'),
    [
        (without_a_validation_class, {}, 'the val data has the classes ant, bee; the train data has ant, bee, cat'),
        (with_an_empty_class, {}, '1 of 3 class folders in'),
        (without_training_data, {}, 'data folder not found:'),
        (with_a_damaged_validation_image, {}, 'cannot read'),
        (lambda root: None, {'train_dataloader.batch_size': 64}, 'an update takes 1 x 64 images'),
        (
            lambda root: None,
            {'train_dataloader.batch_size': 3, 'model.train_cfg': dict(mixup=0.8)},
            'pair up the images of a batch, but one has 3',
        ),
    ],
    ids=['no val class', 'empty class', 'no train', 'damaged', 'batch too large', 'odd batch'],
)
def test_mistakes_get_a_cause_and_a_remedy(harm, options, cause, root, tmp_path):
    copy_tree(root, tmp_path / 'data')
    harm(tmp_path / 'data')
    with pytest.raises(Exception) as error:
        train(config(tmp_path / 'data', tmp_path / 'work', **options))
    explained = explain(error.value)
    assert explained is not None
    assert cause in explained[0] and explained[1]


def test_an_unreadable_training_image_is_skipped_and_named(root, tmp_path, capfd):
    copy_tree(root, tmp_path / 'data')
    (tmp_path / 'data/train/bee/1.png').write_bytes(b'no image')
    train(config(tmp_path / 'data', tmp_path / 'work', **{'train_cfg.max_epochs': 3}))
    assert 'train/bee/1.png: skipped' in capfd.readouterr().out
