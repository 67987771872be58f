"""Sync: one complete, identical copy of a model on every node."""
