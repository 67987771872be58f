"""The OpenAI-compatible server: rank 0 speaks HTTP and decides everything, all ranks step the model together.

Rank side: these modules may import mlx; nothing on the host side imports them.
"""
