"""Evaluates batches of images of unequal size with segmentors, which refuse to pad them together."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def predict_by_size(model: nn.Module) -> None:
    """Let segmentors predict images of one size at a time, in place, so that an evaluation batch may mix sizes.

    Padding would change the result at the borders. A detector, trained on padded images, pads them instead.

    Args:
        model: A segmentor, or a model that holds one; others stay as they are.
    """
    for module in model.modules():
        # The mark of mmseg's preprocessors: padding in testing is a choice of its own.
        if hasattr(getattr(module, 'data_preprocessor', None), 'test_cfg'):
            for name in ('val_step', 'test_step'):
                setattr(module, name, _by_size(getattr(module, name)))


def _by_size(step: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    def predict(data: Any) -> list[Any]:
        images = data['inputs']
        if isinstance(images, Tensor) or len({image.shape for image in images}) == 1:
            return step(data)
        found: dict[int, Any] = {}
        for shape in {image.shape: None for image in images}:
            places = [place for place, image in enumerate(images) if image.shape == shape]
            part = {key: [values[place] for place in places] for key, values in data.items()}
            found.update(zip(places, step(part), strict=True))
        return [found[place] for place in range(len(images))]

    return predict
