"""What a model costs and what was published about it."""
