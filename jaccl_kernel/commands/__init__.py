"""The commands of `jaccl`, a module for each group: arguments, a call of a step, and what it returned."""
