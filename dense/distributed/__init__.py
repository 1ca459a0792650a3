"""Several processes as one run: starting them, joining them, and what happens when one of them fails."""
