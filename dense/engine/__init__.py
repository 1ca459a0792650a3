"""Turns a config into a trained and tested model."""
