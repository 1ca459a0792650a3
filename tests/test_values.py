"""Are values of a wrong form refused before anything is built, with the key, the value, and what is allowed?"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leaves import LEAVES
from toy_run import toy_config

from dense.console.explain_error import explain
from dense.engine.config import load_config
from dense.engine.launch import train
from dense.engine.options import apply_options, parse_options
from dense.engine.values import FORMS, LOOKED_UP, check_values
from dense.errors import UserError
from dense.export.from_config import export_config

# An option, and what the error says.
WRONG = {
    'train_dataloader.batch_size=0': 'train_dataloader.batch_size is 0, allowed is a whole number of at least 1',
    'train_dataloader.batch_size=two': "batch_size is 'two', allowed is a whole number",
    'val_dataloader.batch_size=1.5': 'val_dataloader.batch_size is 1.5',
    'train_dataloader.num_workers=-1': 'num_workers is -1, allowed is a whole number of at least 0',
    'train_dataloader.prefetch_factor=0': 'prefetch_factor is 0, allowed is .* or None',
    'train_dataloader.timeout=-1': 'timeout is -1',
    'train_cfg.max_iters=0': 'train_cfg.max_iters is 0, allowed is a whole number of at least 1',
    'train_cfg.max_iters=many': "train_cfg.max_iters is 'many'",
    'train_cfg.val_interval=0': 'train_cfg.val_interval is 0',
    'train_cfg.val_begin=-1': 'train_cfg.val_begin is -1',
    'optim_wrapper.accumulative_counts=0': 'accumulative_counts is 0, allowed is a whole number of at least 1',
    'optim_wrapper.accumulative_counts=True': 'accumulative_counts is True',
    'optim_wrapper.clip_grad=3': 'clip_grad is 3, allowed is a dict, or None',
    'optim_wrapper.optimizer=AdamW': "optimizer is 'AdamW', allowed is a dict",
    'optim_wrapper.optimizer.lr=fast': "optim_wrapper.optimizer.lr is 'fast', allowed is a number of at least 0",
    'optim_wrapper.optimizer.lr=-0.1': 'optimizer.lr is -0.1',
    'optim_wrapper.optimizer.weight_decay=none': 'weight_decay is None',
    'default_hooks.checkpoint.interval=0': 'checkpoint.interval is 0, allowed is .* at least 1, or -1',
    'default_hooks.checkpoint.max_keep_ckpts=0': 'max_keep_ckpts is 0',
    'default_hooks.checkpoint.save_best=True': 'save_best is True, allowed is the name of a metric',
    'default_hooks.logger.interval=0': 'logger.interval is 0',
    'model.num_classes=8.0': 'model.num_classes is 8.0, allowed is a whole number',
    "model.num_classes='8'": "model.num_classes is '8', allowed is a whole number",
    'randomness.seed=abc': "randomness.seed is 'abc'",
    "auto_scale_lr={'base_batch_size': 0}": 'auto_scale_lr.base_batch_size is 0',
    'max_unreadable=-1': 'max_unreadable is -1',
    'save_every=0': 'save_every is 0, allowed is a number above 0',
    # Names that libraries look up themselves.
    'optim_wrapper.optimizer.type=AdamWW': "unknown optimizer type 'AdamWW' .*\n.*'AdamW'",
    "train_dataloader.collate_fn={'type': 'pseudo_collat'}": "type 'pseudo_collat' .*\n.*'pseudo_collate'",
    "train_dataloader.worker_init_fn={'type': 'nothing_like_it'}": "unknown function type 'nothing_like_it'",
    "model_wrapper_cfg={'type': 'MMDistributedDataParalel'}": "\n.*'MMDistributedDataParallel'",
}


@pytest.mark.parametrize('option', WRONG)
def test_wrong_value_is_refused_before_anything_is_built(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('dense.engine.launch._build_runner', lambda cfg: pytest.fail('the runner was built'))
    cfg = toy_config(tmp_path)
    apply_options(cfg, parse_options([option]))
    with pytest.raises(UserError, match=WRONG[option]) as caught:
        train(cfg)
    assert len(str(caught.value).split('\n')) == 2


def test_every_row_of_the_tables_has_a_case() -> None:
    dotted = [key for option in WRONG for key in [option.partition('=')[0]]]
    dotted += ['train_dataloader.collate_fn.type', 'model_wrapper_cfg.type', 'auto_scale_lr.base_batch_size']
    assert [
        pattern for pattern in {**FORMS, **LOOKED_UP} if not any(re.fullmatch(pattern, key) for key in dotted)
    ] == []


@pytest.mark.parametrize('name', ['mIou', ['score', 'mIou']], ids=str)
def test_metric_that_is_not_reported(name: Any, tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, steps=4)
    cfg.default_hooks.checkpoint.update(save_best=name, rule='greater')
    with pytest.raises(UserError, match=r"save_best is 'mIou', which the validation does not report\n.*score"):
        train(cfg)


def test_metric_without_a_direction(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, steps=4)
    cfg.default_hooks.checkpoint.save_best = 'score'
    with pytest.raises(ValueError, match='Cannot infer the rule') as caught:
        train(cfg)
    cause, remedy = explain(caught.value) or ('', '')
    assert "save_best is 'score'" in cause and 'rule=greater' in remedy


def test_number_of_classes_as_text(
    tiny_data: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]], tiny_config_files: dict[str, str]
) -> None:
    options = tiny_options('seg', tiny_data) | {'model.decode_head.num_classes': '8'}
    config = Path(__file__).parents[1] / tiny_config_files['seg']
    cfg = load_config(config, work_dir=tmp_path, data_root=tiny_data, options=options)
    with pytest.raises(UserError, match=r"model.decode_head.num_classes is '8', allowed is a whole number"):
        train(cfg)
    with pytest.raises(UserError, match=r"model.decode_head.num_classes is '8', allowed is a whole number"):
        export_config(config, tmp_path / 'x.pth', tmp_path / 'x.onnx', options={'model.decode_head.num_classes': '8'})


@pytest.mark.slow
@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_configs_of_the_project_have_values_of_the_right_form(path: Path) -> None:
    check_values(load_config(path))
