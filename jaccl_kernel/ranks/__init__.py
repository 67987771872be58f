"""Programs that run on every rank: `python -m jaccl_kernel.ranks PROGRAM`, under mlx.launch or our own jobs.

Rank side: these modules may import mlx; nothing on the host side imports them.
"""
