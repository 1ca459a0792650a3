"""Draws input, truth and prediction."""
