"""Shared by both sides: errors, events and messages, child processes, files and paths.

The lowest package. It never imports mlx, and knows no nodes, models or jobs.
"""
