"""An exported file as a function of a picture; needs NumPy, OpenCV and ONNX Runtime (PyTorch for ``.pt2``) alone.

Pictures are arrays ``(H, W, 3)``, BGR, uint8.
"""

from pathlib import Path

import cv2
import numpy as np

from dense.predict import runtimes

Arrays = dict[str, np.ndarray]


class ExportedModel:
    """Runs the file that ``tools/export.py`` wrote for a whole detector or segmentor.

    Args:
        path: ``.onnx`` or ``.pt2``.
        threads: Of the CPU; 0 leaves it to the runtime.

    Attributes:
        about: The file's description: task, outputs, classes, palette, resize.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        opener = runtimes.open_torch if Path(path).suffix == '.pt2' else runtimes.open_onnx
        self.run, self.about = opener(str(path), threads)
        if self.about['task'] not in ('labels', 'logits', 'instances'):
            raise ValueError(f'{path} gives {self.about["task"]}\nexport the whole model, without --backbone')

    def __call__(self, picture: np.ndarray) -> Arrays:
        """Resize a picture as in the tests of the model, run, and bring the results back to its own size.

        Returns:
            ``labels`` ``(H, W)``; or ``boxes`` ``(K, 4)``, ``scores`` ``(K,)``, ``labels`` ``(K,)`` and perhaps
            ``masks`` ``(K, H, W)``, bool.
        """
        resized = self.resize(picture)
        image = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)[None], dtype=np.float32)
        outputs = dict(zip(self.about['outputs'], self.run(image), strict=True))
        height, width = picture.shape[:2]
        if self.about['task'] != 'instances':
            return {'labels': _labels(outputs, (height, width))}
        scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
        outputs['boxes'] = outputs['boxes'] * scale
        if 'masks' in outputs:
            pairs = zip(outputs['masks'], outputs['boxes'], strict=True)
            masks = [paste(mask, box, (height, width)) for mask, box in pairs]
            outputs['masks'] = np.stack(masks) if masks else np.zeros((0, height, width), bool)
        return outputs

    def resize(self, picture: np.ndarray) -> np.ndarray:
        """Bring a picture to the size of the tests, and to no less than the file can take."""
        height, width = picture.shape[:2]
        rule = self.about['resize'] or dict(scale=(width, height), keep_ratio=False)
        new_width, new_height = rule['scale']
        if rule['keep_ratio']:
            factor = min(max(rule['scale']) / max(height, width), min(rule['scale']) / min(height, width))
            new_width, new_height = int(width * factor + 0.5), int(height * factor + 0.5)
        size = (max(new_width, self.about['smallest']), max(new_height, self.about['smallest']))
        return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Lay probabilities ``(h, w)`` over a box, bilinearly, and return where they reach the threshold, ``size``."""
    rows, columns = (
        _weights(start, end, length, cells)
        for start, end, length, cells in zip(box[1::-1], box[:1:-1], size, mask.shape, strict=True)
    )
    return rows @ mask @ columns.T >= threshold


def _weights(start: float, end: float, length: int, cells: int) -> np.ndarray:
    """Share ``(length, cells)`` of each cell between ``start`` and ``end`` in each pixel; none beyond the ends."""
    place = (np.arange(length) + 0.5 - start) / max(end - start, 1e-6) * cells - 0.5
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def _labels(outputs: Arrays, size: tuple[int, int]) -> np.ndarray:
    if 'labels' in outputs:
        return cv2.resize(outputs['labels'][0].astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST)
    logits = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in outputs['logits'][0]])
    return logits.argmax(axis=0) if len(logits) > 1 else (logits[0] > 0).astype(np.int64)
