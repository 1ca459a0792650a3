"""An exported file as a function of a picture; needs only NumPy, OpenCV and ONNX Runtime."""

from pathlib import Path

import cv2
import numpy as np

from dense.errors import UserError
from dense.predict import runtimes

Arrays = dict[str, np.ndarray]
MOST_OBJECTS = 10_000
MOST_PIXELS = 1 << 26  # of what goes into the network
# Output -> its number of dimensions and the kinds of its numbers (as NumPy names them).
_FORMS = {
    'labels of a map': (3, 'iu'),
    'logits': (4, 'f'),
    'boxes': (2, 'f'),
    'scores': (1, 'f'),
    'labels': (1, 'iu'),
    'masks': (3, 'f'),
}


class ExportedModel:
    """Runs the file that `dense export` wrote for a whole detector or segmentor.

    Args:
        path: ``.onnx``.
        threads: CPU threads; 0 leaves the choice to the runtime.

    Attributes:
        about: The file's description: task, outputs, classes, palette, numbers, sizes.

    Raises:
        UserError: The file is missing, of another format, not ours or damaged.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        self.path = Path(path)
        if self.path.suffix == '.pt2':
            raise UserError(
                f'{path} is a program of torch.export, and opening one can run code that is in it',
                'export the model as .onnx; .pt2 is for programs of your own that trust the file',
            )
        if not self.path.is_file():
            raise UserError(f'there is no file {path}', 'write it with `dense export`')
        if self.path.suffix != '.onnx':
            raise UserError(f'{path} does not end in .onnx', 'give a file that `dense export` wrote')
        self.run, self.about = runtimes.open_onnx(self.path, threads)

    def __call__(self, picture: np.ndarray, *, least_score: float = 0.0) -> Arrays:
        """Resize a picture as in the model's tests, run the model, and scale the results back to the picture's size.

        Args:
            picture: RGB, uint8, ``(H, W, 3)``.
            least_score: Objects with a lower score are left out.

        Returns:
            ``labels`` ``(H, W)``; or ``boxes`` ``(K, 4)``, ``scores`` ``(K,)``, ``labels`` ``(K,)`` and perhaps
            ``masks`` ``(K, H, W)``, bool. Labels count from 0.

        Raises:
            UserError: The file cannot take the picture, or its output does not match its description.
        """
        resized = self.resize(picture)
        image = np.ascontiguousarray(resized.transpose(2, 0, 1)[None], dtype=np.float32)
        outputs = dict(zip(self.about.outputs, self.run(image), strict=True))
        self._check(outputs)
        height, width = picture.shape[:2]
        if self.about.task != 'instances':
            found = {'labels': _labels(outputs, (height, width))}
        else:
            scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
            kept = outputs['scores'] >= least_score
            found = {name: values[kept] for name, values in outputs.items()}
            found['boxes'] = found['boxes'] * scale
            if 'masks' in found:
                pairs = zip(found['masks'], found['boxes'], strict=True)
                masks = [paste(mask, box, (height, width)) for mask, box in pairs]
                found['masks'] = np.stack(masks) if masks else np.zeros((0, height, width), bool)
        self._check_labels(found['labels'])
        return found

    def resize(self, picture: np.ndarray) -> np.ndarray:
        """Resize a picture to the test size, but to no less than the file accepts."""
        height, width = picture.shape[:2]
        new_width, new_height = self.about.scale or (width, height)
        if self.about.scale and self.about.keep_ratio:
            long, short = max(self.about.scale), min(self.about.scale)
            factor = min(long / max(height, width), short / min(height, width))
            new_width, new_height = int(width * factor + 0.5), int(height * factor + 0.5)
        size = (max(new_width, self.about.smallest), max(new_height, self.about.smallest))
        if size[0] * size[1] > MOST_PIXELS:
            raise UserError(f'{size[0]} x {size[1]} pixels are too many for a network', 'make the picture smaller')
        return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)

    def _check(self, outputs: Arrays) -> None:
        is_map = self.about.task == 'labels'
        for name, values in outputs.items():
            dims, kinds = _FORMS['labels of a map' if is_map else name]
            is_right = isinstance(values, np.ndarray) and values.ndim == dims and values.dtype.kind in kinds
            if not is_right or (values.dtype.kind == 'f' and not np.isfinite(values).all()):
                self._refuse(f'its {name} are not finite numbers in {dims} dimensions')
        if self.about.task != 'instances':
            (values,) = outputs.values()
            if values.shape[0] != 1 or not values.size or (values.ndim == 4 and values.shape[1] > 1 << 16):
                self._refuse(f'{self.about.outputs[0]} of the shape {values.shape}')
            return
        lengths = {len(values) for values in outputs.values()}
        if len(lengths) != 1 or max(lengths) > MOST_OBJECTS or outputs['boxes'].shape[1] != 4:
            self._refuse(f'outputs of the shapes {", ".join(str(values.shape) for values in outputs.values())}')

    def _check_labels(self, labels: np.ndarray) -> None:
        known = len(self.about.classes) or len(self.about.numbers) or 1 << 16
        if labels.size and (labels.min() < 0 or labels.max() >= known):
            outside = labels.min() if labels.min() < 0 else labels.max()
            self._refuse(f'the label {outside}, where 0 to {known - 1} are allowed')

    def _refuse(self, what: str) -> None:
        raise UserError(f'the output of {self.path} does not match its description: {what}', 'export the model again')


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Spread probabilities ``(h, w)`` over a box, bilinearly, and return where they reach the threshold, ``size``."""
    rows, columns = (
        _weights(start, end, length, cells)
        for start, end, length, cells in zip(box[1::-1], box[:1:-1], size, mask.shape, strict=True)
    )
    return rows @ mask @ columns.T >= threshold


def _weights(start: float, end: float, length: int, cells: int) -> np.ndarray:
    """Return the share ``(length, cells)`` of each cell from ``start`` to ``end`` in each pixel; none outside."""
    place = (np.arange(length) + 0.5 - start) / max(end - start, 1e-6) * cells - 0.5
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def _labels(outputs: Arrays, size: tuple[int, int]) -> np.ndarray:
    if 'labels' in outputs:
        return cv2.resize(outputs['labels'][0].astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST)
    logits = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in outputs['logits'][0]])
    return logits.argmax(axis=0) if len(logits) > 1 else (logits[0] > 0).astype(np.int64)
