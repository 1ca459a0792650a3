"""UperNet with heads for small images and few cores: an eighth of the channels.

Our own; differs from `upernet.py` in the settings below.
"""

_base_ = './upernet.py'

model = dict(decode_head=dict(channels=64), auxiliary_head=dict(channels=32))
