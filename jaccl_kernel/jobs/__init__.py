"""One mlx.launch job from the host's side: described, started, followed, ended, and its failure explained.

Host side: only `launcher`, which is a child process, imports mlx.
"""
