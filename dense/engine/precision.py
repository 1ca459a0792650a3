"""Sets mixed precision, requested by the user or a recipe, where the processor supports it."""

from mmengine.config import Config

from dense.console.output import notice
from dense.cpu.device import multiplies_bfloat16, processor, run_device
from dense.errors import UserError

MIXED = ('DenseAmpOptimWrapper', 'AmpOptimWrapper')
INSIST = '--cfg-options optim_wrapper.dtype=bfloat16'


def ask_for_mixed_precision(cfg: Config) -> None:
    """Set a config to mixed precision, in place.

    Args:
        cfg: Config of a run. A ``dtype`` in it means that the user insists.

    Raises:
        UserError: The run uses a CPU that cannot multiply bfloat16 numbers, and the user does not insist.
    """
    if _is_slow(cfg):
        raise UserError(
            f'mixed precision would be many times slower here: this processor ({processor()}) has no instructions for '
            'bfloat16',
            f'start without --amp, or insist with {INSIST}',
        )
    cfg.optim_wrapper.type = 'DenseAmpOptimWrapper'


def fit_precision(cfg: Config) -> None:
    """Let a recipe in mixed precision run on a CPU, in place: in full precision where that is faster.

    Args:
        cfg: Config of a training run.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if run_device() != 'cpu' or wrapper.get('type') not in MIXED:
        return
    if _is_slow(cfg):
        wrapper['type'] = 'OptimWrapper'
        for key in ('dtype', 'loss_scale'):
            wrapper.pop(key, None)
        notice(
            f'float32 instead of mixed precision: this processor ({processor()}) has no instructions for bfloat16; '
            f'{INSIST} uses bfloat16 all the same'
        )
    else:
        wrapper['type'] = 'DenseAmpOptimWrapper'  # MMEngine's own fails without a GPU


def warn_of_slow_evaluation(cfg: Config, loop: str) -> None:
    """Say if the config asks for mixed precision in a validation or test where it is many times slower.

    Args:
        cfg: Config of a run.
        loop: ``'val_cfg'`` or ``'test_cfg'``.
    """
    if (cfg.get(loop) or {}).get('fp16') and run_device() == 'cpu' and not multiplies_bfloat16():
        notice(
            f'{loop}.fp16 makes it many times slower: this processor ({processor()}) has no instructions for bfloat16; '
            f'--cfg-options {loop}.fp16=False uses float32'
        )


def _is_slow(cfg: Config) -> bool:
    insists = (cfg.get('optim_wrapper') or {}).get('dtype') is not None
    return run_device() == 'cpu' and not insists and not multiplies_bfloat16()
