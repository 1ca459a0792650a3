"""What a person sees: messages, progress, errors, tables."""
