"""The check that every metric makes before it computes."""

from collections.abc import Sized

from dense.errors import UserError


def check_results(results: Sized, metric: object) -> None:
    """Raise a UserError if there is nothing to evaluate.

    Args:
        results: One for each image.
        metric: The metric that they belong to.

    Raises:
        UserError: There are none.
    """
    if not len(results):
        raise UserError(
            f'{type(metric).__name__} has no image to evaluate',
            'check whether the data set of val_dataloader or test_dataloader is empty: its ann_file, data_prefix and '
            'filter_cfg, and num_batch_per_epoch',
        )
