"""SGD 0.02 with momentum 0.9 and weight decay 1e-4 on all parameters: the optimizer of mmdet's ResNets.

Mirrors the optimizer of mmdet `configs/_base_/schedules/schedule_1x.py`.
"""

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
