"""Notebooks: panels (one per step), their views, the session, and resident ranks from the kernel's side.

Panels show the events and the report of a step; steps do the work, off the main thread, so that the kernel
stays responsive. This module imports nothing, to keep `jaccl` fast.
"""
