"""Are the numbers of the ImageNet configs those of the published recipes?"""

from dataclasses import dataclass

import numpy as np
import pytest
from leaves import EXPECTED, build_on_meta, find_all, load, lr_curve, parts_of
from mmengine.optim import build_optim_wrapper

import dense.classify


@dataclass(frozen=True)
class Recipe:
    """One column of a paper's table of hyperparameters.

    Attributes:
        drop_path: Of the last block.
        augment: RandAugment in timm's notation.
        mixup, cutmix, erase: 0 for none.
        update: Images per update.
        peak: Highest learning rate.
        decay: Weight decay.
        ema: Whether an average of the weights with decay 0.9999 is kept.
        crop: Share of the shortest side that is tested.
        clip: Largest norm of the gradient.
    """

    drop_path: float
    augment: str | None = 'rand-m9-mstd0.5-inc1'
    mixup: float = 0.8
    cutmix: float = 1.0
    erase: float = 0.25
    update: int = 4096
    peak: float = 4e-3
    decay: float = 0.05
    ema: bool = False
    crop: float = 0.875
    clip: float | None = None


def fasternet(drop_path, decay, mixup, magnitude, **options):
    augment = f'rand-m{magnitude}-mstd0.5-inc1' if magnitude else None
    return Recipe(drop_path, augment, mixup, erase=0, decay=decay, crop=0.9, **options)


# InceptionNeXt: Table 9 and the released commands. FasterNet: Table 6. ConvNeXt: the InceptionNeXt authors' commands.
RECIPES = {
    'inceptionnext-a_8xb160-450e': Recipe(0.1, 'rand-m5-inc1-mstd101', mixup=0.2, erase=0.1, update=1280, peak=1e-3),
    'inceptionnext-t_8xb128-300e': Recipe(0.1),
    'inceptionnext-s_8xb128-300e': Recipe(0.3),
    'inceptionnext-b_8xb128-300e': Recipe(0.4),
    'inceptionnext-b_8xb32-30e': Recipe(0.7, mixup=0, cutmix=0, update=1024, peak=5e-5, ema=True, crop=1.0),
    'fasternet-t0_8xb512-300e': fasternet(0, 0.005, 0.05, None),
    'fasternet-t1_8xb512-300e': fasternet(0.02, 0.01, 0.1, 3),
    'fasternet-t2_8xb512-300e': fasternet(0.05, 0.02, 0.1, 5),
    'fasternet-s_8xb512-300e': fasternet(0.1, 0.03, 0.3, 7),
    'fasternet-m_8xb256-300e': fasternet(0.2, 0.05, 0.5, 7, update=2048, peak=2e-3, clip=1),
    'fasternet-l_8xb256-300e': fasternet(0.3, 0.05, 0.7, 7, update=2048, peak=2e-3, clip=0.01),
    'convnext-t_8xb128-300e': Recipe(0.1, ema=True),
    'convnext-s_8xb128-300e': Recipe(0.4, ema=True),
    'convnext-b_8xb128-300e': Recipe(0.5, ema=True),
    **{
        f'convnext-t-{kernel}_8xb128-300e': Recipe(0.1, ema=True)
        for kernel in ('k5', 'k3', 'k3-par1-2', 'k3-par3-8', 'k3-par1-4', 'k3-par1-8', 'k3-par1-16')
    },
}
NAMES = {short: f'classifier_{short}_in1k-{384 if "-30e" in short else 224}' for short in RECIPES}
NAMES = {short: f'{name}x{name[-3:]}' for short, name in NAMES.items()}
every = pytest.mark.parametrize('short', RECIPES)


def test_every_leaf_is_compared():
    assert sorted(NAMES.values()) == sorted(EXPECTED['ImageNet'])


def hooks(cfg, kind):
    return [hook for hook in cfg.get('custom_hooks', []) if hook.type == kind]


@every
def test_augmentation(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    assert dict(mixup=0, cutmix=0, erase_prob=0) | cfg.model.train_cfg == dict(
        label_smoothing=0.1, mixup=recipe.mixup, cutmix=recipe.cutmix, erase_prob=recipe.erase
    )
    assert find_all(cfg.train_dataloader, 'auto_augment') == [recipe.augment]
    transform, is_fasternet = cfg.train_dataloader.dataset.transform, short.startswith('fasternet')
    assert transform.get('interpolation', 'random') == ('bicubic' if is_fasternet else 'random')
    size = int(parts_of(NAMES[short])['height'])
    assert transform.size == (192 if is_fasternet else size)
    later = hooks(cfg, 'TrainSizeHook')
    assert [(hook.epoch, hook.size) for hook in later] == ([(280, 224)] if is_fasternet else [])


@every
def test_testing(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    size = int(parts_of(NAMES[short])['height'])
    expected = dict(type='TimmTestTransform', size=size, crop_pct=recipe.crop, interpolation='bicubic')
    for split in ('val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.transform == expected
        assert (dataset.test_mode, dataset.data_prefix.img_path) == (True, 'val')
        assert cfg[f'{split}_evaluator'] == dict(type='TopAccuracy', topk=(1, 5))


@every
def test_batch_arithmetic(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    assert 8 * cfg.train_dataloader.batch_size * accumulation == recipe.update == cfg.auto_scale_lr.base_batch_size
    assert cfg.train_dataloader.batch_sampler.get('accumulative_counts', 1) == accumulation
    assert accumulation == (4 if recipe.update in (4096, 1024) and not short.startswith('fasternet') else 1)


@every
def test_average_of_the_weights(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    found = hooks(cfg, 'EMAHook')
    assert len(found) == recipe.ema
    for hook in found:  # MMEngine's momentum is 1 - decay; once per update, batch statistics included
        assert hook.momentum == pytest.approx(1 - 0.9999)
        assert hook.interval == cfg.optim_wrapper.accumulative_counts
        assert hook.update_buffers


@every
def test_optimizer(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer == dict(
        type='AdamW', lr=recipe.peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.decay
    )
    is_fasternet = short.startswith('fasternet')
    assert wrapper.type == ('DenseAmpOptimWrapper' if is_fasternet else 'OptimWrapper')
    assert (wrapper.get('clip_grad') or {}).get('max_norm') == recipe.clip


# One of each recipe and family; the groups follow from the same rule.
@pytest.mark.parametrize('short', ['inceptionnext-a_8xb160-450e', 'fasternet-t0_8xb512-300e', 'convnext-t_8xb128-300e'])
def test_what_is_not_decayed(short):
    recipe, cfg, model = RECIPES[short], load(NAMES[short]), build_on_meta(NAMES[short])
    config = dict(cfg.optim_wrapper, type='OptimWrapper')
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    decay = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    assert {group['lr'] for group in groups} == {recipe.peak}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        # timm exempts one-dimensional parameters and biases; FasterNet's code hides their names from it.
        exempt = (parameter.ndim <= 1 or name.endswith('.bias')) and not short.startswith('fasternet')
        assert decay[id(parameter)] == (0 if exempt else recipe.decay), name


def timm_rate(epoch, epochs, warmup, start, peak, least):
    if epoch < warmup:
        return start + (peak - start) * epoch / warmup
    return least + (peak - least) * (1 + np.cos(np.pi * epoch / epochs)) / 2


def fasternet_rate(epoch, peak):
    if epoch < 20:
        return 1e-6 + (peak - 1e-6) * epoch / 19
    return 1e-5 + (peak - 1e-5) * (1 + np.cos(np.pi * (epoch - 20) / 280)) / 2


@pytest.mark.parametrize(
    ('short', 'rate'),
    [
        ('inceptionnext-a_8xb160-450e', lambda epoch: timm_rate(epoch, 450, 5, 5e-7, 1e-3, 5e-7)),
        ('inceptionnext-t_8xb128-300e', lambda epoch: timm_rate(epoch, 300, 20, 1e-6, 4e-3, 1e-5)),
        ('inceptionnext-b_8xb32-30e', lambda epoch: 5e-5),
        ('fasternet-t0_8xb512-300e', lambda epoch: fasternet_rate(epoch, 4e-3)),
        ('fasternet-l_8xb256-300e', lambda epoch: fasternet_rate(epoch, 2e-3)),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_learning_rate(short, rate):
    cfg = load(NAMES[short])
    epochs = cfg.train_cfg.max_epochs
    # Three steps per epoch: constant within each.
    wanted = [0, 1, 10, 19, 20, 21, 150, 280, 299, 449]
    got = lr_curve(cfg, 3, [3 * epoch + step for epoch in wanted if epoch < epochs for step in range(3)])
    for step, value in got.items():
        assert value == pytest.approx(rate(step // 3), rel=1e-6), step


FROM_SCRATCH = [short for short in RECIPES if short.endswith('-300e')]  # the others have their own schedules above
FIRST = 'inceptionnext-t_8xb128-300e'


@pytest.mark.parametrize('short', [s for s in FROM_SCRATCH if not s.startswith('fasternet') and s != FIRST])
def test_inceptionnext_and_convnext_share_the_schedule(short):
    assert load(NAMES[short]).param_scheduler == load(NAMES[FIRST]).param_scheduler


@pytest.mark.parametrize('short', [s for s in FROM_SCRATCH if s.startswith('fasternet')])
def test_fasternets_share_the_schedule(short):
    warm_up, cosine = load(NAMES[short]).param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end, cosine.eta_min) == (20, 20, 300, 1e-5)
    assert warm_up.start_factor * RECIPES[short].peak == pytest.approx(1e-6)


@every
def test_model(short):
    recipe, cfg = RECIPES[short], load(NAMES[short])
    model = build_on_meta(NAMES[short])
    depths = [len(stage.blocks) for stage in model.backbone.stages]
    rates = [getattr(block.drop_path, 'drop_prob', 0) or 0 for stage in model.backbone.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, recipe.drop_path, sum(depths)), atol=1e-6)
    assert type(model.head) is getattr(dense.classify, f'{cfg.model.backbone.type}Head')
    assert model.head.num_classes == 1000
    assert not any(name.startswith('out_norm') for name, _ in model.backbone.named_modules())
    # Nothing is loaded but the start of the fine-tuning, which takes the head as well.
    is_tuned = short.endswith('-30e')
    assert cfg.model.backbone.init_cfg is None
    assert (cfg.model.get('init_cfg') or {}).get('checkpoint') == ('inceptionnext_base' if is_tuned else None)
    assert getattr(model.head, 'drop', None) is None or model.head.drop.p == (0.5 if is_tuned else 0)
    if cfg.model.backbone.type == 'FasterNet':
        assert type(model.head.act) is type(model.backbone.stages[0].blocks[0].mlp[2])
    else:
        assert set(find_all(cfg.model, 'layer_scale_init_value')) <= {1e-6}
