"""Does --auto-scale-lr scale every rate with the images per step, and say so?"""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from leaves import BY_NAME, CONFIGS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from dense.engine.launch import load_config, train
from dense.engine.runner import DenseRunner
from dense.errors import UserError

LR = 1e-3


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)


def make_wrapper(**paramwise):
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=0.05))
    return build_optim_wrapper(Model(), dict(cfg, paramwise_cfg=paramwise) if paramwise else cfg)


def scale(wrapper, *, gpus=1, images=2, accumulative_counts=1, base=16, enable=True):
    """What the runner does to the rates of a wrapper, without a runner."""
    optim_wrapper = dict(optimizer=dict(lr=LR), accumulative_counts=accumulative_counts)
    cfg = Config(dict(train_dataloader=dict(batch_size=images), optim_wrapper=optim_wrapper))
    runner = SimpleNamespace(cfg=cfg, world_size=gpus)
    DenseRunner.scale_lr(runner, wrapper, dict(enable=enable, base_batch_size=base))
    return [group['lr'] for group in wrapper.param_groups]


@pytest.mark.parametrize(
    ('gpus', 'images', 'accumulative_counts', 'factor'),
    [(8, 2, 1, 1.0), (1, 2, 1, 1 / 8), (4, 2, 1, 0.5), (8, 8, 1, 4.0), (1, 4, 4, 1.0), (2, 4, 4, 2.0)],
)
def test_the_rate_is_proportional_to_the_images_per_step(gpus, images, accumulative_counts, factor):
    rates = scale(make_wrapper(), gpus=gpus, images=images, accumulative_counts=accumulative_counts)
    assert rates == pytest.approx([LR * factor] * len(rates))


def test_groups_keep_their_ratio_and_the_shown_rate_follows():
    wrapper = make_wrapper(custom_keys=dict(backbone=dict(lr_mult=0.1)))
    before = [group['lr'] for group in wrapper.param_groups]
    assert len(set(before)) == 2
    assert scale(wrapper) == pytest.approx([rate / 8 for rate in before])
    assert wrapper.get_lr()['base_lr'] == pytest.approx([LR / 8])


def test_without_the_option_nothing_changes():
    assert set(scale(make_wrapper(), enable=False)) == {LR}
    wrapper = make_wrapper()
    DenseRunner.scale_lr(SimpleNamespace(), wrapper, None)
    assert {group['lr'] for group in wrapper.param_groups} == {LR}


def test_option_of_a_config():
    path = BY_NAME['mask-rcnn_inceptionnext-t_fpn_1x_coco']
    assert load_config(path).auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert load_config(path, auto_scale_lr=True).auto_scale_lr == dict(enable=True, base_batch_size=16)
    with pytest.raises(UserError, match='images per step') as caught:
        load_config(BY_NAME['mask-rcnn_inceptionnext-a_fpn_400i_own-320x320'], auto_scale_lr=True)
    assert "auto_scale_lr={'base_batch_size': NUMBER}" in caught.value.remedy


def test_a_run_is_scaled_and_says_so(tiny_data, tiny_options, tiny_config_files, tmp_path, capsys):
    options = tiny_options('seg', tiny_data, iters=1)
    options |= {'auto_scale_lr': {'base_batch_size': 16}, 'optim_wrapper.accumulative_counts': 2}
    options |= {'param_scheduler': [dict(type='ConstantLR', factor=1.0)]}
    rates = []
    for is_scaled in (False, True):
        cfg = load_config(
            tiny_config_files['seg'],
            data_root=tiny_data,
            work_dir=tmp_path / str(is_scaled),
            options=options,
            auto_scale_lr=is_scaled,
        )
        groups = train(cfg).optim_wrapper.param_groups
        rates.append(torch.tensor([group['lr'] for group in groups]))
    torch.testing.assert_close(rates[1], rates[0] * (2 * 2 / 16))
    shown = capsys.readouterr().out
    assert shown.count('images per step') == 1
    assert 'learning rate 0.001 for 16 images per step becomes 0.00025 for 4' in shown


def test_the_command_has_the_option(tiny_command, tiny_data, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('tools_train', CONFIGS.parent / 'tools' / 'train.py')
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    # This config does not say for how many images its rate is meant.
    assert command.main(tiny_command('seg', tiny_data, tmp_path, '--auto-scale-lr')) == 2
    assert 'images per step' in capsys.readouterr().err
