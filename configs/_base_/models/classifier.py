"""Image classifier without backbone and head: ImageNet's mean and deviation, label smoothing 0.1 as in all papers."""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    head=dict(num_classes=1000),
    train_cfg=dict(label_smoothing=0.1),
)
