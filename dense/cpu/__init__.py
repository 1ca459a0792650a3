"""Settings for running fast without a GPU."""
