"""Faster computation than layer by layer, mostly on a CPU; outputs and gradients differ only by rounding.

- :mod:`~backbones.fast.lean_mlp`: MLPs trained without holding their hidden maps.
- :mod:`~backbones.fast.winograd`: 3 x 3 convolutions with a quarter of the multiplications.
- :mod:`~backbones.fast.fused_block`: the blocks of models that :func:`backbones.fuse.fuse` rewrites for inference.
"""
