"""Environment: the same working Python on every node: check, plan, apply."""
