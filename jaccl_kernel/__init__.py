"""JACCL workbench: one machine for large language models out of 1-8 Macs joined by Thunderbolt 5.

The package has two halves, joined by a process boundary and never by an import: the host side (cluster,
models, jobs, report, steps, rehearsal, notebook, cli), which never imports mlx, and the rank side (ranks,
server), which runs on every rank. Importing this package costs next to nothing.
"""

__version__ = "0.1.0"
