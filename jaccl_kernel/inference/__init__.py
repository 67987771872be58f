"""The engine: one batch on all ranks, stepped together by rank 0's plans. Knows no HTTP and no API.

Rank side: these modules may import mlx; the host side never imports them.
"""
