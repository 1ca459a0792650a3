"""Do folders of images give the same batches, targets and metrics as in the papers' training scripts?"""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, TRANSFORMS
from PIL import Image
from timm.data import create_transform
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import SequentialSampler

import dense.classify
from dense.classify import BatchAugment
from dense.data.image_folder import read_class_folders
from dense.errors import UserError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def write_photo(path, width=50, height=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(['cat/b.png', 'cat/a.JPEG', 'ant/deep/c.jpg', 'bee/d.png']):
        write_photo(tmp_path / 'train' / name, seed=number)
    (tmp_path / 'train/cat/notes.txt').write_text('no image')
    (tmp_path / 'train/.cache').mkdir()
    return tmp_path


def folder_dataset(root, **changes):
    transform = dict(type='TimmTestTransform', size=32, crop_pct=0.875)
    config = dict(data_root=str(root), data_prefix=dict(img_path='train'), transform=transform, test_mode=True)
    return DATASETS.build(dict(config, type='ImageFolderDataset', **changes))


def test_classes_are_the_sorted_folders(root):
    dataset = folder_dataset(root)
    assert dataset.metainfo['classes'] == ('ant', 'bee', 'cat')
    listed = [(dataset.get_data_info(i)['img_path'], dataset.get_data_info(i)['gt_label']) for i in range(len(dataset))]
    expected = [('ant/deep/c.jpg', 0), ('bee/d.png', 1), ('cat/a.JPEG', 2), ('cat/b.png', 2)]
    assert listed == [(str(root / 'train' / name), label) for name, label in expected]
    assert dataset.read_classes(dict(data_root=str(root), data_prefix=dict(img_path='train'))) == ('ant', 'bee', 'cat')


def test_pictures_may_have_longer_names(root):
    assert folder_dataset(root).metainfo['titles'] == ('ant', 'bee', 'cat')
    (root / 'classes.json').write_text('{"cat": "tabby, tabby cat", "ant": "ant"}')
    assert folder_dataset(root).metainfo['titles'] == ('ant', 'bee', 'tabby')
    (root / 'classes.json').write_text('["ant", "bee", "cat"]')
    with pytest.raises(UserError, match='is not a JSON object from folder to name\n'):
        folder_dataset(root)


def test_folders_that_are_no_data_set(root):
    for folder, message in ((root / 'val', 'data folder not found'), (root / 'train/cat', 'holds 0 folders')):
        with pytest.raises(UserError, match=message) as error:
            read_class_folders(folder)
        assert 'train/<class>' in error.value.remedy
    (root / 'train/dog').mkdir()
    (root / 'train/dog/readme.md').write_text('no image')
    with pytest.raises(UserError, match=r'1 of 4 class folders in .* hold no image: dog'):
        folder_dataset(root)


@pytest.mark.parametrize(('size', 'crop_pct'), [(32, 0.875), (32, 0.9), (64, 1.0)])
def test_testing_equals_timms_normalised_transform(root, size, crop_pct):
    transform = dict(type='TimmTestTransform', size=size, crop_pct=crop_pct)
    sample = folder_dataset(root, transform=transform)[0]
    assert (sample['inputs'].dtype, sample['data_samples'].gt_label) == (torch.uint8, 0)
    batch = default_collate([sample])
    preprocessor = MODELS.build(dict(type='ImgDataPreprocessor', mean=MEAN, std=STD))
    image = Image.open(root / 'train/ant/deep/c.jpg').convert('RGB')
    expected = create_transform(size, interpolation='bicubic', crop_pct=crop_pct)(image)
    torch.testing.assert_close(preprocessor(batch)['inputs'][0], expected, rtol=0, atol=1e-5)


def test_training_transform_is_timms():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    ours = TRANSFORMS.build(dict(type='TimmTrainTransform', size=32, auto_augment='rand-m7-mstd0.5-inc1'))
    theirs = create_transform(
        32, is_training=True, auto_augment='rand-m7-mstd0.5-inc1', interpolation='random', normalize=False
    )
    results = []
    for transform in (ours.transform, theirs):
        for seed in range(5):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            results.append(transform(image))
    assert all(torch.equal(a, b) for a, b in zip(results[:5], results[5:], strict=True))
    assert len({result.sum().item() for result in results[:5]}) == 5


def test_strongest_posterize_gives_a_black_image():
    """Pillow refuses to keep no bit at all; the published trainings drew that level."""
    transform = TRANSFORMS.build(dict(type='TimmTrainTransform', size=32, auto_augment='rand-m10-n9-inc1'))
    image = Image.new('RGB', (32, 32), (200, 100, 50))
    random.seed(0)
    np.random.seed(0)
    operations = [op for step in transform.transform.transforms for op in getattr(step, 'ops', [])]
    posterize = [op for op in operations if op.name == 'PosterizeIncreasing']
    assert len(posterize) == 1
    posterize[0].prob = 1.0
    assert np.asarray(posterize[0](image)).max() == 0


def test_targets_without_mixing_are_smoothed_labels():
    images = torch.zeros(3, 3, 4, 4)
    same, targets = BatchAugment(5, label_smoothing=0.1)(images, torch.tensor([0, 4, 2]))
    assert same.data_ptr() == images.data_ptr() and torch.equal(same, torch.zeros(3, 3, 4, 4))
    torch.testing.assert_close(targets[1], torch.tensor([0.02, 0.02, 0.02, 0.02, 0.92]))


@pytest.mark.parametrize('options', [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)], ids=str)
def test_targets_tell_what_the_pixels_are_mixed_of(options):
    augment, kinds = BatchAugment(4, **options), set()
    for seed in range(20):
        np.random.seed(seed)
        images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
        mixed, targets = augment(images, torch.arange(4))
        share = targets[0, 0].item()  # image i is mixed with image 3 - i
        torch.testing.assert_close(targets, share * torch.eye(4) + (1 - share) * torch.eye(4).flip(0))
        torch.testing.assert_close(mixed[0].mean().item(), 3 * (1 - share), rtol=1e-4, atol=1e-4)
        kinds.add('cut' if set(mixed[0].unique().tolist()) <= {0.0, 3.0} else 'mix')
    assert kinds == {name for name, option in (('mix', 'mixup'), ('cut', 'cutmix')) if option in options}


def test_mixing_needs_pairs():
    with pytest.raises(UserError, match=r'pair up the images of a batch, but one has 3\n'):
        BatchAugment(4, mixup=0.8)(torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.long))


def test_erasing_writes_noise_into_rectangles():
    random.seed(0)
    torch.manual_seed(0)
    images, _ = BatchAugment(4, erase_prob=0.25)(torch.zeros(400, 3, 16, 16), torch.zeros(400, dtype=torch.long))
    erased = images.flatten(1).any(dim=1)
    assert 0.18 < erased.float().mean() < 0.32
    assert images[images != 0].std() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize('batch_size', [1, 7, 100])
def test_accuracy_is_exact_on_uneven_batches(batch_size):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(25, 9, generator=generator), torch.randint(9, (25,), generator=generator)
    metric = METRICS.build(dict(type='TopAccuracy', topk=(1, 5, 9)))
    for start in range(0, 25, batch_size):
        part = slice(start, start + batch_size)
        samples = [dict(gt_label=int(y), pred_scores=s) for y, s in zip(labels[part], scores[part], strict=True)]
        metric.process(None, samples)
    hits = {k: (scores.topk(k).indices == labels[:, None]).any(1).sum().item() for k in (1, 5)}
    assert 0 < hits[1] < hits[5]
    expected = {f'top{k}': 4.0 * number for k, number in hits.items()}  # 25 images; no top-9 of nine classes
    assert metric.evaluate(25) == pytest.approx(expected)


def test_scores_that_say_nothing_are_not_right():
    metric = METRICS.build(dict(type='TopAccuracy', topk=(1, 2)))
    metric.process(None, [dict(gt_label=0, pred_scores=torch.full((3,), value)) for value in (0.3, float('nan'))])
    assert metric.evaluate(2) == dict(top1=0, top2=0)


@pytest.mark.parametrize(('end', 'warmup', 'warmup_lr', 'min_lr'), [(300, 20, 1e-6, 1e-5), (450, 5, 5e-7, 5e-7)])
def test_rate_is_timms(end, warmup, warmup_lr, min_lr):
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=4e-3) for _ in range(2))
    schedule = PARAM_SCHEDULERS.build(
        dict(type='TimmCosineLR', end=end, warmup=warmup, warmup_lr=warmup_lr, min_lr=min_lr),
        default_args=dict(optimizer=ours),
    )
    reference = CosineLRScheduler(theirs, t_initial=end, lr_min=min_lr, warmup_t=warmup, warmup_lr_init=warmup_lr)
    for epoch in range(end):
        assert ours.param_groups[0]['lr'] == pytest.approx(theirs.param_groups[0]['lr'], rel=1e-9), epoch
        ours.step()
        schedule.step()
        reference.step(epoch + 1)
    with pytest.raises(ValueError, match=r'allowed are 0 to below end=3\.\n'):
        dense.classify.schedule.TimmCosineLR(ours, end=3, warmup=3)


def test_an_epoch_holds_whole_updates():
    build = dict(type='WholeUpdates', sampler=SequentialSampler(range(29)), batch_size=4)
    assert list(DATA_SAMPLERS.build(build)) == [list(range(i, i + 4)) for i in range(0, 28, 4)]
    batches = DATA_SAMPLERS.build(dict(build, accumulative_counts=3))
    assert len(batches) == len(list(batches)) == 6
    with pytest.raises(UserError, match=r'an update takes 8 x 4 images, but the training data has 29\n'):
        DATA_SAMPLERS.build(dict(build, accumulative_counts=8))
