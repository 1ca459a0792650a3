"""A trained model as one file that runs without this project, MMDetection, MMSegmentation or MMEngine.

:func:`export_model` writes ONNX or a program of ``torch.export``; :mod:`dense.export.graphs` and
:mod:`dense.export.detector` say what the files compute, ``tools/infer.py`` runs them.
"""

from dense.export.graphs import BackboneGraph, ExportGraph, SegmentorGraph
from dense.export.write import FORMATS, export_model

__all__ = ['FORMATS', 'BackboneGraph', 'ExportGraph', 'SegmentorGraph', 'export_model']
