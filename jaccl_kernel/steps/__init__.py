"""The steps of the path, each a coroutine that takes a cluster and returns a report object.

A step prints nothing and draws nothing: it reports progress to `on_event` and returns its results.
"""
