"""A generated data set of toy scenes: COCO annotations and label maps of the same pictures, made in seconds."""

from dense.data.mini.write import CLASSES, PALETTE, SPLITS, THING_CLASSES, MiniData, write_crops, write_mini

__all__ = ['CLASSES', 'PALETTE', 'SPLITS', 'THING_CLASSES', 'MiniData', 'write_crops', 'write_mini']
