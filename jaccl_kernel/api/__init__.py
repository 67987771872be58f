"""HTTP on rank 0: the OpenAI-compatible routes over the engine's requests and streams.

Rank side: these modules may import mlx; the host side never imports them.
"""
