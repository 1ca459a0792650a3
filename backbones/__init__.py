"""Efficient convolutional backbones for dense prediction. Importing this package registers them in MMEngine."""
