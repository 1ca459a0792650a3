"""Decides when checkpoints are saved and which are kept; a full disk does not end a run."""

import contextlib
import time
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from dense.console.output import notice
from dense.engine.atomic import ATOMIC, AtomicBackend, sweep
from dense.engine.checkpoint import from_plain, to_plain
from dense.engine.disk_space import check_space
from dense.engine.values import check_metric
from dense.errors import UserError

EXTRA = 'extra_ckpt'  # of the message hub: name of the newest file saved between two intervals
REPLACED = 'replaced_ckpts'  # likewise: names of the files that go as soon as this one is written
SCORE, PATH = 'best_score', 'best_ckpt'  # how its entries about the best checkpoint begin


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook, with the same arguments, that writes through ``AtomicBackend``.

    The log history is stored as plain tensors, so that the file opens with ``torch.load(weights_only=True)``.
    A checkpoint that cannot be written is reported, and the one before it is kept; the next interval tries again.

    Args:
        *args: As in MMEngine's hook.
        background: Write in a thread while training goes on.
        **kwargs: As in MMEngine's hook.
    """

    def __init__(self, *args: Any, background: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.background = background
        self.saved_step = -1  # the last step that was saved, or at least should have been
        self.saved_at = time.monotonic()
        self.failed: tuple[str, OSError] | None = None  # the last checkpoint, if it could not be written
        self._last_good: str | None = None
        self._known_best: dict[str, Any] | None = None  # while a better one is being saved

    def before_train(self, runner: Any) -> None:
        """Choose the folder and how files are written, and remove half-written files that killed runs left there."""
        self.backend_args: dict[str, Any] | None
        is_local = self.backend_args is None and '://' not in str(self.out_dir or runner.work_dir)
        if is_local:
            self.backend_args = dict(backend=ATOMIC, waiting=[])
        super().before_train(runner)
        self._args, self._backend = self.backend_args, get_file_backend(self.out_dir, backend_args=self.backend_args)
        if is_local:
            # For the best checkpoint. The one before it stays if the new one cannot be written.
            self.backend_args = dict(backend=ATOMIC, waiting=[], cancels=True)
            self.file_backend = get_file_backend(self.out_dir, backend_args=self.backend_args)
        self.saved_step, self.saved_at = -1, time.monotonic()
        if runner._resume:
            self.saved_step, self._last_good = runner.iter, runner._load_from
            self.last_ckpt = self._last_good
            if Path(str(self._last_good)).parent == Path(self.out_dir):
                self._finish_last_save(runner)
        runner.writer.in_background = self.background and is_local
        if is_local and is_main_process():
            for path in sweep(self.out_dir):
                runner.logger.info(f'removed {path}, which a killed run had left half-written')
            check_space(runner, self)

    def _finish_last_save(self, runner: Any) -> None:
        """Do what a run that was killed right after it wrote the checkpoint could not do any more."""
        for name in runner.message_hub.runtime_info.get(REPLACED, ()):
            self._remove(name)
        if is_main_process():
            with contextlib.suppress(OSError):  # what resumes a run finds its files without it
                AtomicBackend().put(str(self._last_good).encode(), Path(runner.work_dir) / 'last_checkpoint')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Turn every object in the checkpoint into plain data."""
        for key in ('message_hub', 'meta'):
            checkpoint[key] = to_plain(checkpoint[key])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Rebuild the log history."""
        if runner._resume:
            checkpoint['message_hub'] = from_plain(checkpoint['message_hub'])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save if it is due, and say how the last save ended."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if not runner.writer.is_busy:
            self._look(runner)

    def after_train(self, runner: Any) -> None:
        """Wait for the last checkpoint, and publish it if the config asks for it.

        Raises:
            UserError: It could not be written.
        """
        self.finish(runner)
        super().after_train(runner)

    def finish(self, runner: Any) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            UserError: The last one could not be written.
        """
        self._look(runner)
        if self.failed is not None:
            path, error = self.failed
            raise UserError(
                f'the checkpoint {path} could not be written: {error.strerror or error}; {self._kept()}',
                'free some space or repair the folder, then continue with --resume',
            ) from error

    def save_between(self, runner: Any, step: int, *, again: bool = False) -> None:
        """Save a checkpoint at a step that the interval does not ask for. Every process must call it.

        Only the newest of these files is kept, until the next save of any kind.

        Args:
            runner: The runner.
            step: Number of completed steps. Nothing is done if they were saved already.
            again: Replace what was saved at this step.
        """
        is_saved = self.saved_step == step and self.last_ckpt is not None
        if again or self.saved_step != step:
            name = Path(str(self.last_ckpt)).name if is_saved else f'iter_{step}.pth'
            self._save(runner, name, dict(epoch=runner.epoch, iter=step), is_extra=not is_saved)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        self._look(runner)  # what is removed below may still be being written
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._save(runner, self.filename_tmpl.format(step), meta)

    def _save(self, runner: Any, name: str, meta: dict[str, Any], is_extra: bool = False) -> None:
        self._look(runner)
        if self._known_best is not None:
            self._take_back(runner, self._known_best)
        old = runner.message_hub.runtime_info.get(EXTRA)
        if old and old != name:
            self._remove(old)
        self.last_ckpt = self._backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.message_hub.update_info(EXTRA, name if is_extra else '')
        waiting = (self._args or {}).get('waiting', ())
        runner.message_hub.update_info(REPLACED, [Path(old).name for old in waiting])
        runner.writer.pointer = Path(runner.work_dir) / 'last_checkpoint'
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            backend_args=self._args,
            **self.args,
        )
        runner.writer.pointer = None
        self.saved_step, self.saved_at = meta['iter'], time.monotonic()

    def _remove(self, name: str) -> None:
        path = self._backend.join_path(self.out_dir, name)
        if is_main_process() and self._backend.isfile(path):
            self._backend.remove(path)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, float]) -> None:
        check_metric(self.key_indicators if self.save_best and metrics else (), metrics)
        self._look(runner)
        # A validation takes its time anyway, and what is removed depends on what was written.
        background, runner.writer.in_background = runner.writer.in_background, False
        self._known_best = _best(runner)
        try:
            super()._save_best_checkpoint(runner, metrics)  # saves the last checkpoint again if there is a new best
        finally:
            self._known_best, runner.writer.in_background = None, background
        self._look(runner)

    def _take_back(self, runner: Any, known: dict[str, Any]) -> None:
        """Let the best checkpoint be the one before, in all processes, if the new one could not be written."""
        new = {key: path for key, path in _best(runner).items() if key.startswith(PATH) and path != known.get(key)}
        lost = [[key for key, path in new.items() if not self.file_backend.isfile(path)]]
        broadcast_object_list(lost)
        for name in (key.removeprefix(PATH) for key in lost[0]):
            for entry in (f'{PATH}{name}', f'{SCORE}{name}'):
                runner.message_hub.runtime_info.pop(entry, None)
                if entry in known:
                    runner.message_hub.update_info(entry, known[entry])
            if name:
                self.best_ckpt_path_dict[name.removeprefix('_')] = known.get(f'{PATH}{name}')
            else:
                self.best_ckpt_path = known.get(PATH)

    def _look(self, runner: Any) -> None:
        """Wait for the file that is being written; tell the user if that fails, or works again."""
        for path, error in runner.writer.outcomes():
            is_last = path == self.last_ckpt
            if error is None:
                if is_last and self.failed is not None:
                    notice(f'checkpoints can be written again: {path}')
                self.failed, self._last_good = (None, path) if is_last else (self.failed, self._last_good)
                continue
            if is_last:
                self.failed = (path, error)
                runner.message_hub.update_info('last_ckpt', self._last_good or '')
            notice(
                f'WARNING: the checkpoint {path} could not be written: {error.strerror or error}. Training goes on; '
                f'{self._kept()}; the next interval tries again'
            )

    def _kept(self) -> str:
        return f'the last good one is {self._last_good}' if self._last_good else 'there is none before it'


def _best(runner: Any) -> dict[str, Any]:
    return {key: value for key, value in runner.message_hub.runtime_info.items() if key.startswith((SCORE, PATH))}
