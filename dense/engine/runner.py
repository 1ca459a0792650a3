"""MMEngine's runner with a readable screen; it also runs in several processes without a GPU."""

import functools
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import join_path
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from backbones.fast.winograd import use_winograd
from dense.console.explain_error import explain, last_line
from dense.console.output import log_into, notice
from dense.cpu.defaults import compile_backbones
from dense.cpu.device import run_device
from dense.cpu.sync_norm import sync_by_gloo
from dense.distributed.join import WITHOUT_NETWORK
from dense.engine.accumulation import gather_open_update
from dense.engine.by_size import predict_by_size
from dense.engine.content import collect
from dense.engine.disk_space import lose_rows
from dense.engine.loaders import build_loader
from dense.engine.part_state import gather_part_states
from dense.engine.writer import CheckpointWriter
from dense.errors import UserError


@RUNNERS.register_module()
class DenseRunner(Runner):
    """Runner whose log goes to the file in the work dir only; the screen belongs to the progress bar and notices."""

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Build the logger.

        Args:
            log_level: Least level of what is logged.
            log_file: The file; named after the time of the start by default.
            **kwargs: Arguments of ``MMLogger``.
        """
        logger = super().build_logger(log_level, log_file, **kwargs)
        log_into(logger)
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build the visualizer, which also writes the logged numbers; a full disk does not end the run.

        Args:
            visualizer: Its config; MMEngine's default if None.
        """
        built = super().build_visualizer(visualizer)
        lose_rows(built)
        return built

    @staticmethod
    def build_dataloader(dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        """Build a data loader; its processes end with this one.

        Args:
            dataloader: Its config.
            seed: Seed of the sampler.
            diff_rank_seed: Whether the processes of a distributed run have samplers with different seeds.
        """
        return build_loader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to its device and wrap it for several processes; SyncBN becomes BN where there is one.

        Args:
            model_wrapper_cfg: Config of the wrapper; MMEngine's default if None.
            model: The model.
        """
        predict_by_size(model)
        num_sync = sum(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        if num_sync and self.distributed and not torch.cuda.is_available():
            sync_by_gloo(model)
        elif num_sync and not self.distributed:
            notice(f'SyncBN needs several processes: its {num_sync} layers are plain BN in this run')
            model = revert_sync_batchnorm(model)
        if model_wrapper_cfg is None and self.distributed and run_device() in WITHOUT_NETWORK:
            # The default wrapper names a GPU.
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    @functools.cached_property
    def writer(self) -> CheckpointWriter:
        """What writes this run's checkpoints."""
        return CheckpointWriter()

    def train(self) -> nn.Module:
        """Train the model and return it."""
        try:
            return super().train()
        except Exception:
            self.writer.wait()  # an error does not cost the checkpoint that is being written
            raise

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue from a checkpoint.

        Args:
            filename: The file.
            *args: As in MMEngine's runner.
            **kwargs: Likewise.

        Raises:
            UserError: The states of its optimizer or schedulers do not fit.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if explain(error) is not None:
                raise
            raise UserError(
                f'{filename} is no state that this run can go on from: {last_line(error)[:200]}',
                'use the config that it was saved with, resume from another checkpoint, or start a new run from its '
                'weights with --load-from',
            ) from error

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint in the main process, with the gradients that each process has gathered for an update.

        Every process must call it. :attr:`writer` knows whether the file could be written.

        Args:
            out_dir: Folder of the file.
            filename: Its name.
            file_client_args: Of MMEngine's older interface to files; refused.
            save_optimizer: Whether to save the optimizer.
            save_param_scheduler: Whether to save the schedulers.
            meta: Entries of ``meta`` besides the usual ones; ``epoch`` and ``iter`` are those of a save after a step
                or an epoch by default.
            by_epoch: Whether that is a save after an epoch.
            backend_args: Arguments of MMEngine's file backend.
        """
        if file_client_args is not None:
            raise UserError('file_client_args of the checkpoint hook is no longer supported', 'use backend_args')
        self.part_states = gather_part_states(self)
        self.open_update = gather_open_update(self)  # the rest, including its hooks, happens in the main process only
        if is_main_process():
            done = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
            content = collect(
                self, optimizer=save_optimizer, schedulers=save_param_scheduler, meta={**done, **(meta or {})}
            )
            self.call_hook('before_save_checkpoint', checkpoint=content)
            self.writer.write(content, join_path(out_dir, filename, backend_args=backend_args), backend_args)
        self.open_update = self.part_states = None

    def test(self) -> dict[str, float]:
        """Evaluate the model and return the metrics."""
        self._choose_convolutions()
        return super().test()

    def _choose_convolutions(self) -> None:
        if self.cfg.get('winograd', run_device() == 'cpu'):
            number = use_winograd(self.model)
            self.logger.info(f"{number} convolutions by Winograd's algorithm (backbones/fast/winograd.py)")

    def _maybe_compile(self, target: str) -> None:
        self._choose_convolutions()  # the weights have been initialised by now
        # MMEngine's would compile the whole training step, whose losses depend on the data.
        options = self.cfg.get('compile')
        if options:
            names = compile_backbones(self.model, {} if options is True else dict(options))
            notice(f'compiled at the first steps, which take longer: {", ".join(names)}')

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rates linearly with the images per step, if the config asks for it, and say so.

        Unlike MMEngine's it counts accumulated gradients, and scales what the log shows along with the rates.

        Args:
            optim_wrapper: Its rates are those of the config; changed in place.
            auto_scale_lr: ``enable``, and ``base_batch_size``: the images per step that the rates are meant for.
        """
        if not auto_scale_lr or not auto_scale_lr.get('enable', False):
            return
        images = self.cfg.train_dataloader.batch_size * self.cfg.optim_wrapper.get('accumulative_counts', 1)
        images *= self.world_size
        base = auto_scale_lr['base_batch_size']
        for group in optim_wrapper.param_groups:
            group['lr'] *= images / base
        rate = self.cfg.optim_wrapper.optimizer.lr
        notice(f'learning rate {rate:g} for {base} images per step becomes {rate * images / base:g} for {images}')
