"""How the Macs are connected: the facts of each Mac, the cables between them, and recommended changes.

Facts become a wiring, and the wiring becomes an rdma matrix. Does not depend on simulation, jobs or mlx.
"""
