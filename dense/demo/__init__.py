"""The demonstration: two models trained on generated scenes."""
