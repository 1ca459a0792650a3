"""Makes a training step depend on its global batch, not on how many processes share it."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from dense.data.same_size import pad_alike
from dense.engine.global_losses import GlobalLosses
from dense.engine.placed_draws import place_samplers, share_noise
from dense.errors import UserError

KEY = 'images_per_step'


@HOOKS.register_module()
class GlobalBatchHook(Hook):
    """Let any number of processes train as one does on the same global batch, and refuse to go on with another batch.

    Random numbers of single samples follow their places, images are padded alike, and losses are averaged over all
    processes. The order of the samples comes from :class:`dense.data.seeded.SeededBatchSampler`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        """Prepare the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        place_samplers(model)
        if get_world_size() > 1:
            share_noise(model)
            pad_alike()
            GlobalLosses(model)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the number of images in a step of all processes."""
        checkpoint['meta'][KEY] = _images_per_step(runner)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Compare it with that of this run; a run that only starts from weights ignores it.

        Raises:
            UserError: They differ: the images would come in another order, and the schedule would count other steps.
        """
        saved, present = checkpoint.get('meta', {}).get(KEY), _images_per_step(runner)
        if runner._resume and saved is not None and saved != present:
            processes = get_world_size()
            each = f'{saved // processes}' if saved % processes == 0 else f'{saved} / (number of processes)'
            raise UserError(
                f'the checkpoint was saved with {saved} images per step; this run has {processes} x '
                f'{present // processes} = {present}, so the rest would not be the same training',
                f'add --cfg-options train_dataloader.batch_size={each}, or start a new run from its weights with '
                '--load-from',
            )


def _images_per_step(runner: Any) -> int:
    return runner.train_dataloader.batch_sampler.global_batch_size
