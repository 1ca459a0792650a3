"""Your own objects in COCO's layout; the categories of the annotation file are the classes.

Differs from `coco_320x320.py` in the class of the data set and the folder. The launcher fills the heads'
`num_classes` from the data. Give the folder with `--data-root`.
"""

_base_ = './coco_320x320.py'

data_root = 'data/own/'

train_dataloader = dict(dataset=dict(type='CocoFolderDataset', data_root=data_root))
val_dataloader = dict(dataset=dict(type='CocoFolderDataset', data_root=data_root))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
