"""Writes down at the start of each run how to repeat it: ``run.json`` and ``code.diff`` in its work dir."""

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.cpu.device import processor, run_device
from dense.data.index_hash import data_index, sha256_of
from dense.engine.atomic import AtomicBackend
from dense.engine.checkpoint import CheckpointMatchHook
from dense.engine.code_state import read_code_state
from dense.engine.weight_files import file_of
from dense.project import IS_CLONE, PROJECT

FILE, DIFF = 'run.json', 'code'
DISTRIBUTION = 'inceptionnext-dense'
LIBRARIES = (
    DISTRIBUTION, 'torch', 'torchvision', 'timm', 'numpy', 'mmengine', 'mmengine-lite', 'mmcv-lite', 'mmdet',
    'mmsegmentation', 'opencv-python-headless', 'pillow', 'pycocotools', 'faster-coco-eval', 'safetensors',
)  # fmt: skip
# What a log should not tell: credentials in addresses, and values of keys with such names.
CREDENTIALS = re.compile(r'(?<=://)[^/@\s\'"]+(?=@)')
SECRETS = re.compile(
    r'(?i)(\b[\w.-]*(?:token|passw(?:or)?d|secret|api_?key|credential)[\w-]*[\'"]?\s*[=:]\s*)(\'[^\']*\'|"[^"]*"|[^\s,)}\]]+)'
)


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Add a record of this start to ``run.json`` in the work dir; earlier records stay.

    The main process writes the time, the command, the whole config, the commit and the diff of the code, versions,
    hardware, the weights that were loaded, and a hash of the data's index. Environment variables are not written, and
    values that look like credentials are replaced.

    Args:
        start_iter: Steps made before this start.
    """

    priority = 'VERY_LOW'

    def __init__(self, start_iter: int = 0) -> None:
        self.start_iter = start_iter

    def before_train(self, runner: Any) -> None:
        """Write the record."""
        if not is_main_process():
            return
        try:
            add_record(Path(runner.work_dir), describe(runner, self.start_iter))
        except OSError as error:  # a run is worth more than its record
            notice(f'WARNING: {FILE} cannot be written: {error}')


def describe(runner: Any, start_iter: int) -> dict[str, Any]:
    """Return what tells how to repeat a run.

    Args:
        runner: About to train.
        start_iter: Steps made before.
    """
    cfg = runner.cfg
    return dict(
        started=time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        start_iter=start_iter,
        resumed_from=cfg.get('load_from') if cfg.get('resume') else None,
        command=[without_secrets(part) for part in sys.argv],
        folder=os.getcwd(),
        config_file=cfg.filename,
        config=without_secrets(cfg.pretty_text),
        seed=cfg.get('randomness', {}).get('seed'),
        versions=_versions(),
        hardware=_hardware(),
        weights=_weights(runner),
        data=_data(runner),
    )


def without_secrets(text: str) -> str:
    """Replace what looks like a credential.

    Args:
        text: Of a command or a config.
    """
    return SECRETS.sub(r"\1'***'", CREDENTIALS.sub('***', text))


def add_record(work_dir: Path, record: dict[str, Any]) -> None:
    """Add a record, and the diff of the code, to those of a work dir.

    Args:
        work_dir: Folder of the run.
        record: From :func:`describe`; the state of the code is added.
    """
    path, runs = _readable_records(work_dir)
    record['code'] = _write_code(work_dir)
    content = json.dumps(dict(runs=[*runs, record]), indent=2, default=str)
    AtomicBackend().put(content.encode(), path)


def _readable_records(work_dir: Path) -> tuple[Path, list[Any]]:
    """Return the file to write, and what it holds; a file that cannot be read is kept, and another one begun."""
    path = work_dir / FILE
    number = 1
    while path.exists():
        try:
            runs = json.loads(path.read_text(encoding='utf-8'))['runs']
            if isinstance(runs, list):
                return path, runs
        except (ValueError, KeyError, TypeError):  # damaged, or another program's
            pass
        number += 1
        path = work_dir / f'run-{number}.json'
    return path, []


def _write_code(work_dir: Path) -> dict[str, Any]:
    state = read_code_state(PROJECT) if IS_CLONE else None
    if state is None:
        return dict(commit=None, diff=None)
    found: dict[str, Any] = dict(commit=state.commit, diff=None, untracked=list(state.untracked))
    if state.diff:
        path = _same_or_new(work_dir, state.diff)
        if not path.exists():
            AtomicBackend().put(state.diff, path)
        found.update(diff=path.name, diff_bytes=state.diff_bytes, diff_sha256=state.diff_sha256)
        if len(state.diff) < state.diff_bytes:
            notice(
                f'{path.name} holds the first {len(state.diff)} of {state.diff_bytes} bytes of the changes to the code'
            )
    return found


def _same_or_new(work_dir: Path, diff: bytes) -> Path:
    """Return the file that holds this diff already, or a new one."""
    path, number = work_dir / f'{DIFF}.diff', 1
    while path.exists() and path.read_bytes() != diff:
        number += 1
        path = work_dir / f'{DIFF}-{number}.diff'
    return path


def _versions() -> dict[str, str]:
    found = {'python': platform.python_version(), 'system': platform.platform()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found['torch'] = torch.__version__  # with the kind of its build
    if torch.version.cuda:
        found |= {'cuda': torch.version.cuda, 'cudnn': str(torch.backends.cudnn.version())}
    return found


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = dict(
        device=run_device(), processes=get_world_size(), cores=os.cpu_count(), threads=torch.get_num_threads(),
        processor=f'{platform.processor() or platform.machine()} ({processor()})',
    )  # fmt: skip
    if torch.cuda.is_available():
        found['gpus'] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _weights(runner: Any) -> list[dict[str, Any]]:
    """Return where weights came from: the backbone's, and those of a whole model."""
    model = getattr(runner.model, 'module', runner.model)
    found = []
    for name, module in model.named_modules():
        report = getattr(module, 'load_report', None)
        if report is not None:
            found.append(_source(name, report.source, len(report.loaded), report.total))
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointMatchHook)), None)
    if hook is not None and hook.loaded is not None:
        found.append(_source('model', str(runner.cfg.get('load_from')), *hook.loaded))
    return found


def _source(part: str, source: str, loaded: int, total: int) -> dict[str, Any]:
    path = file_of(source)
    return dict(
        part=part, source=without_secrets(source), loaded=loaded, total=total,
        sha256=None if path is None else sha256_of(path),
    )  # fmt: skip


def _data(runner: Any) -> dict[str, list[dict[str, Any]]]:
    loops = dict(train=runner._train_loop, val=runner._val_loop)
    return {split: data_index(loop.dataloader.dataset) for split, loop in loops.items() if hasattr(loop, 'dataloader')}
