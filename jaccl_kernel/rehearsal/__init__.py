"""Simulated Macs on one machine, so that every step can be walked, and tested, with no hardware.

`macs.py` describes a cluster, `faults.py` breaks it on purpose, `tools.py` says what its Macs' own commands
print. A rehearsal proves nothing about RDMA, and all that shows one says so.
"""
