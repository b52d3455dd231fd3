"""What fits on a set of GPUs: levels, budgets, memory, placement and how to launch it."""
