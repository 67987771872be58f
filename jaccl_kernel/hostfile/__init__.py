"""The hostfile: read and write it, find its problems, and predict what JACCL does with its rdma matrix.

This room checks the file alone. `topology` compares it with the Macs and their cables.
"""
