"""The commands. Each parses its options, calls one function of :mod:`dense` and prints what it returns."""
