"""What is chosen to run fast without a GPU."""
