"""Serve: start a server over the ranks, monitor it from outside, restart it, stop it."""
