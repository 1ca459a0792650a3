"""How this package computes faster than layer by layer, mostly on a CPU; outputs and gradients differ by rounding only.

- :mod:`~backbones.fast.lean_mlp`: MLPs trained without holding their hidden maps.
- :mod:`~backbones.fast.winograd`: 3 x 3 convolutions with a quarter of the multiplications.
- :mod:`~backbones.fast.fused_block`: the block of a model that :func:`backbones.fuse.fuse` has rewritten for inference.
"""
