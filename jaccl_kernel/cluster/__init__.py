"""What a cluster is, and what its Macs say of themselves.

Hostfiles, rdma matrices, commands on a node, facts, wiring. Nothing in this room knows who simulates a
Mac, what runs on the ranks, or mlx.
"""
