"""One mlx.launch job from the host's side: specify, start, monitor and stop it, and diagnose its failure.

Host side: only `launcher`, which runs as a child process, imports mlx.
"""
