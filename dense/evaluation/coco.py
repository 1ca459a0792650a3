"""The COCO metric, with an evaluator in C++ by default, or the reference implementation.

Needs mmdet; configs of detectors import it by name.
"""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from dense.console.tables import named_numbers
from dense.data.annotation_masks import has_mask
from dense.data.coco_file import CheckedCoco
from dense.data.findings import named
from dense.errors import UserError
from dense.evaluation.results import check_results

BACKENDS: Mapping[str, tuple[Any, Any]] = {
    'faster': (FasterCOCO, COCOeval_faster),
    'pycocotools': (COCO, COCOeval),
}

_ARRAYS = ('bboxes', 'scores', 'labels', 'mask_scores')


def evaluate_coco(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    *,
    cat_ids: Sequence[int] | None = None,
    img_ids: Sequence[int] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
    iou_thrs: NDArray[np.float64] | None = None,
    use_cats: bool = True,
    backend: str = 'faster',
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare detections with the truth as COCO does.

    Args:
        truth: Content of an annotation file; not changed.
        detections: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height in
            pixels) or ``segmentation`` (compressed RLE).
        iou_type: ``'bbox'`` or ``'segm'``.
        cat_ids: Categories that count; all by default.
        img_ids: Images that count; all by default.
        max_dets: Detections of each image and class that count, for the three average recalls; ascending.
        iou_thrs: COCO's ten from 0.5 to 0.95 by default.
        use_cats: False compares boxes whatever their class, as for proposals.
        backend: ``'faster'`` (faster-coco-eval) or ``'pycocotools'``.

    Returns:
        The twelve numbers of COCO, -1 where there is no truth: AP, AP50, AP75, AP of small, medium and large objects,
        AR at each of ``max_dets``, AR by size; and the precisions ``(IoU, recall, class, size, max_dets)``.
    """
    api, evaluator = BACKENDS[backend]
    # These libraries print to standard output, and change the annotations that they are given.
    with contextlib.redirect_stdout(io.StringIO()):
        ours = _index(api, truth, truth['annotations'])
        theirs = ours.loadRes([dict(item) for item in detections]) if detections else _index(api, truth, [])
        evaluation = evaluator(ours, theirs, iou_type)
        params = evaluation.params
        params.catIds = list(cat_ids) if cat_ids is not None else ours.getCatIds()
        params.imgIds = list(img_ids) if img_ids is not None else ours.getImgIds()
        params.maxDets = list(max_dets)
        params.useCats = int(use_cats)
        if iou_thrs is not None:
            params.iouThrs = np.asarray(iou_thrs)
        evaluation.evaluate()
        evaluation.accumulate()
    return _twelve_numbers(evaluation), np.asarray(evaluation.eval['precision'])


def _index(api: Any, truth: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Any:
    indexed = api()
    indexed.dataset = {**truth, 'annotations': [dict(item) for item in annotations]}
    indexed.createIndex()
    return indexed


def _twelve_numbers(evaluation: Any) -> NDArray[np.float64]:
    """Average what was accumulated; both libraries' own summaries accept only fixed numbers of detections."""
    precision = np.asarray(evaluation.eval['precision'])  # (IoU, recall, class, size, max_dets)
    recall = np.asarray(evaluation.eval['recall'])  # (IoU, class, size, max_dets)
    iou_thrs = np.asarray(evaluation.params.iouThrs)
    last = precision[..., -1]
    at = [np.isclose(iou_thrs, threshold) for threshold in (0.5, 0.75)]
    return np.array(
        [
            _mean(last[..., 0]),
            *(_mean(last[chosen][..., 0]) for chosen in at),
            *(_mean(last[..., size]) for size in (1, 2, 3)),
            *(_mean(recall[:, :, 0, i]) for i in range(3)),
            *(_mean(recall[:, :, size, -1]) for size in (1, 2, 3)),
        ]
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Average the defined values: -1 marks a class without truth, and the mean of nothing."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


@METRICS.register_module()
class DenseCocoMetric(CocoMetric):
    """COCO's average precision, many times faster than MMDetection's metric, with the same names of the results.

    Masks are kept as RLE from the moment they are predicted. Nothing is written to disk unless asked for.

    Args:
        ann_file: Annotation file; None takes the truth from the data.
        metric: ``'bbox'``, ``'segm'``, ``'proposal'``, or a list of these.
        backend: ``'faster'`` (faster-coco-eval) or ``'pycocotools'``, the reference.
        classwise: Whether to report the AP of each class, too.
        proposal_nums: Detections of each image that count, three numbers.
        metric_items: Which of the twelve numbers; by default the six average precisions, for proposals the recalls.
        format_only: Only write the results as COCO files, for a test server.
        outfile_prefix: Path of these files without their suffixes.
        collect_device: Where the results of several processes are gathered.
        prefix: Prefix of the names of the results.

    Raises:
        UserError: An unknown metric, backend or item, or an annotation file that cannot be used.
    """

    _coco_api: Any
    cat_ids: Any
    img_ids: Any

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = 'bbox',
        *,
        backend: str = 'faster',
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric)
        names = _names_of(proposal_nums)
        _check('metric', metrics, ('bbox', 'segm', 'proposal'))
        _check('backend', [backend], tuple(BACKENDS))
        _check('metric_items', metric_items or (), names)
        super().__init__(
            metric=metrics,
            classwise=classwise,
            proposal_nums=proposal_nums,
            metric_items=metric_items,
            format_only=format_only,
            outfile_prefix=outfile_prefix,
            collect_device=collect_device,
            prefix=prefix,
        )
        self.backend = backend
        self.names = names
        if ann_file is not None:
            self._coco_api = _read_truth(ann_file, with_masks='segm' in metrics)

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the evaluation needs of a batch: boxes, scores, labels, and the masks as RLE.

        Args:
            data_batch: Not used.
            data_samples: Predictions: ``pred_instances``, ``img_id``, ``ori_shape``, and ``instances`` where the truth
                comes with the data.
        """
        start = len(self.results)
        super().process(data_batch, data_samples)
        for _, prediction in self.results[start:]:
            # Detectors return slices of the results before the limit on detections; a slice keeps all of them alive.
            prediction.update({key: prediction[key].copy() for key in _ARRAYS if key in prediction})

    def compute_metrics(self, results: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
        """Evaluate all images.

        Args:
            results: Truth and prediction of each image, as :meth:`process` made them.

        Returns:
            Name -> value in 0 to 1, or -1 where there is no truth.

        Raises:
            UserError: There are no images.
        """
        check_results(results, self)
        truths, predictions = zip(*results, strict=True)
        if self._coco_api is None:
            self._coco_api = self._convert_truth(truths)
        self.cat_ids = self.cat_ids or self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        self.img_ids = self.img_ids or self._coco_api.get_img_ids()
        if self.outfile_prefix is not None:
            self.results2json(predictions, self.outfile_prefix)
        values: dict[str, float] = {}
        for metric in () if self.format_only else self.metrics:
            values.update(self._evaluate(metric, predictions))
        return values

    def _convert_truth(self, truths: Sequence[dict[str, Any]]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return COCO(self.gt_to_coco_json(truths, str(Path(folder) / 'truth')))

    def _evaluate(self, metric: str, predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
        numbers, precision = evaluate_coco(
            self._coco_api.dataset,
            self._detections(predictions, with_masks=metric == 'segm'),
            'segm' if metric == 'segm' else 'bbox',
            cat_ids=self.cat_ids,
            img_ids=self.img_ids,
            max_dets=self.proposal_nums,
            iou_thrs=self.iou_thrs,
            use_cats=metric != 'proposal',
            backend=self.backend,
        )
        values = dict(zip(self.names, numbers.tolist(), strict=True))
        items = self.metric_items or (self.names[6:] if metric == 'proposal' else self.names[:6])
        chosen = {item if metric == 'proposal' else f'{metric}_{item}': values[item] for item in items}
        if self.classwise and metric != 'proposal':
            chosen.update(self._by_class(metric, precision))
        return chosen

    def _detections(self, predictions: Sequence[dict[str, Any]], *, with_masks: bool) -> list[dict[str, Any]]:
        """Return all predicted objects as COCO results; one with a mask has no box, so its area is that of the mask."""
        found = []
        for prediction in predictions:
            scores = prediction.get('mask_scores', prediction['scores']) if with_masks else prediction['scores']
            for i, label in enumerate(prediction['labels'].tolist()):
                item = dict(image_id=prediction['img_id'], category_id=self.cat_ids[label], score=float(scores[i]))
                if with_masks:
                    item['segmentation'] = prediction['masks'][i]
                else:
                    item['bbox'] = self.xyxy2xywh(prediction['bboxes'][i])
                found.append(item)
        return found

    def _by_class(self, metric: str, precision: NDArray[np.float64]) -> dict[str, float]:
        names = [category['name'] for category in self._coco_api.load_cats(self.cat_ids)]
        average = {name: _mean(precision[:, :, i, 0, -1]) for i, name in enumerate(names)}
        MMLogger.get_current_instance().info(f'{metric} AP by class\n{named_numbers(average, digits=3)}')
        return {f'{metric}_{name}_precision': value for name, value in average.items()}


def _read_truth(ann_file: str, *, with_masks: bool) -> CheckedCoco:
    truth = CheckedCoco(ann_file, as_truth=True)
    lacking = [item['id'] for item in truth.dataset['annotations'] if not has_mask(item['segmentation'])]
    if lacking and with_masks:
        raise UserError(
            f'{ann_file}: {len(lacking)} annotations have no mask ({named(lacking)}), but the metric compares masks',
            'export the annotation with its masks, or evaluate boxes only: metric="bbox"',
        )
    return truth


def _names_of(max_dets: Sequence[int]) -> tuple[str, ...]:
    recalls = (f'AR@{number}' for number in max_dets)
    by_size = (f'AR_{size}@{max_dets[-1]}' for size in 'sml')
    return ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', *recalls, *by_size)


def _check(argument: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for value in given:
        if value not in allowed:
            raise UserError(f'{argument}: {value!r} is unknown', f'use one of {", ".join(allowed)}')
