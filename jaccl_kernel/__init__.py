"""JACCL workbench: one machine for large language models out of 1-8 Macs joined by Thunderbolt 5.

The package has two halves, joined by a process boundary and never by an import: the host side (cluster,
models, jobs, report, steps, rehearsal, notebook, cli), which never imports mlx, and the rank side (ranks,
server), which runs on every rank. Importing this package costs next to nothing.
"""

__version__ = "0.1.0"


def load_ipython_extension(shell: object) -> None:
    """`%load_ext jaccl_kernel`: the magics %%jaccl, %jaccl and %%prompt."""
    from jaccl_kernel.notebook.magics import JacclMagics

    shell.register_magics(JacclMagics)  # type: ignore[attr-defined]
