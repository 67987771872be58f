"""Simulated Macs on one machine, so that every step can be tried and tested without hardware.

`macs.py` describes a cluster, `faults.py` adds faults to it, `tools.py` has the output of its Macs' commands.
A rehearsal proves nothing about RDMA, and every user interface that shows one marks it as REHEARSAL.
"""
