"""What every run shares, whatever its task.

Mirrors the part that mmdet and mmseg `configs/_base_/default_runtime.py` have in common. Differs in one point: no
visualization hook (`tools/test.py --show-dir` draws instead). Whatever counts epochs or iterations is set in the
schedules; what a task needs imported, in `det.py` and `seg.py`.
"""

# Worker processes already use every core: OpenCV's own threads would only compete with them.
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),  # seconds that a process waits for the others
)
vis_backends = [dict(type='LocalVisBackend')]

log_level = 'INFO'
load_from = None
resume = False
