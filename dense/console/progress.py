"""A progress bar with the remaining time, or an occasional line if the output is not a terminal."""

import time
from numbers import Real
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dense.console.output import console, notice, start_progress, stop_progress

LOSS_MEMORY = 0.9


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Show the progress of training, validation or testing, the time left, and the loss (a running mean).

    Args:
        line_interval: Seconds between two lines if the output is not a terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self, line_interval: float = 30.0) -> None:
        self.line_interval = line_interval
        self._bar: _Bar | None = None
        self._train_bar: _Bar | None = None

    def before_train(self, runner: Any) -> None:
        """Start the bar of the training steps."""
        self._train_bar = self._start('train', runner.max_iters, done=runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance by a training step."""
        if self._train_bar is not None:
            loss = (outputs or {}).get('loss')
            self._train_bar.advance(None if loss is None else float(torch.as_tensor(loss).detach()))

    def after_train(self, runner: Any) -> None:
        """End the bar of the training steps."""
        stop_progress()
        self._train_bar = None

    def before_val_epoch(self, runner: Any) -> None:
        """Replace the training bar with one for the validation batches."""
        self._bar = self._start('validate', len(runner.val_dataloader))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance by a validation batch."""
        if self._bar is not None:
            self._bar.advance()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Show the metrics and return to the training bar."""
        stop_progress()
        notice(f'after {runner.iter} steps: {summary(metrics or {})}')
        if self._train_bar is not None and runner.iter < runner.max_iters:
            self._train_bar.show()

    def before_test_epoch(self, runner: Any) -> None:
        """Start the bar of the test batches."""
        self._bar = self._start('test', len(runner.test_dataloader))

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance by a test batch."""
        if self._bar is not None:
            self._bar.advance()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """End the bar of the test batches."""
        stop_progress()

    def _start(self, name: str, total: int, done: int = 0) -> '_Bar | None':
        if not is_main_process():
            return None
        bar = _Bar(name, total, done, self.line_interval)
        bar.show()
        return bar


class _Bar:
    """One bar; it does not count the time during which another one is shown."""

    def __init__(self, name: str, total: int, done: int, line_interval: float) -> None:
        self.name, self.total, self.done = name, total, done
        self.line_interval = line_interval
        self.loss: float | None = None
        self._seconds = 0.0  # spent on the steps made here
        self._steps = 0
        self._since = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        self._task: Any = None

    def show(self) -> None:
        """Put the bar on the screen."""
        self._since = time.monotonic()
        if not console().is_terminal:
            return
        # A new object each time: a stopped one keeps counting the time in between.
        self._progress = Progress(
            TextColumn('{task.description:<8}'), BarColumn(bar_width=30), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn('left'), TextColumn('{task.fields[loss]}'),
            console=console(), transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._task = self._progress.add_task(self.name, total=self.total, completed=self.done, loss=self._loss_text())
        start_progress(self._progress)

    def advance(self, loss: float | None = None) -> None:
        """Count one step."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._steps += 1
        self.done += 1
        if loss is not None:
            self.loss = loss if self.loss is None else LOSS_MEMORY * self.loss + (1 - LOSS_MEMORY) * loss
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done, loss=self._loss_text())
        elif self._steps == 1 or self.done == self.total or now - self._last_line >= self.line_interval:
            self._last_line = now
            notice(self.line())

    def line(self) -> str:
        """Return the state as one line of text."""
        left = (self.total - self.done) * self._seconds / self._steps
        return f'{self.name} {self.done}/{self.total}  {clock(left)} left  {self._loss_text()}'.rstrip()

    def _loss_text(self) -> str:
        return '' if self.loss is None else f'loss {self.loss:.4g}'


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def summary(metrics: dict[str, float]) -> str:
    """Return the metrics as one line, without those of COCO's object sizes and of single thresholds above 0.5."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
    shown = [f'{name} {value:.4g}' for name, value in numbers.items() if not name.endswith(('_75', '_s', '_m', '_l'))]
    return '  '.join(shown) or 'no metrics'
