"""The parts of the panels: a log, progress, and blocks of HTML. All render offline.

Views contain no steps or clusters. Their methods are safe from any thread.
"""
