"""Counts what a model costs, and lists what was published about it."""
