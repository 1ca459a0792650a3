"""The metrics of both tasks."""
