"""JACCL workbench: turns 1-8 Macs joined by Thunderbolt 5 into one machine for large language models.

The package has two sides, separated by a process boundary and never joined by an import: the host side
(nodes, hostfile, topology, models, launch, steps, report, rehearsal, notebook, cli), which never imports mlx,
and the rank side (ranks, api, inference), which runs on every rank. Importing this package is fast.
"""

__version__ = "0.1.0"


def load_ipython_extension(shell: object) -> None:
    """Register the magics %%jaccl, %jaccl and %%prompt (`%load_ext jaccl_kernel`)."""
    from jaccl_kernel.core import layers

    if module := layers.first_missing():
        raise layers.missing(module, "%load_ext jaccl_kernel")
    from jaccl_kernel.notebook.magics import JacclMagics

    shell.register_magics(JacclMagics)  # type: ignore[attr-defined]
