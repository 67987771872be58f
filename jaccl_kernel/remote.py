"""What the host asks of resident ranks, as ipyparallel sends it. Imported on both sides."""

from typing import Any


def call(number: int, name: str, arguments: dict[str, Any]) -> Any:
    """Run on every engine: the rank side's `Resident.call`, found where that runs."""
    import importlib

    # by name: the host side imports this module too, and must not import the ranks'
    return importlib.import_module("jaccl_kernel.ranks.resident").here.call(number, name, arguments)


def ask_kernel(what: str, code: str, *more: int) -> Any:
    """Run on rank 0: what its IPython knows of a cell (`do_complete`, `do_inspect`)."""
    from IPython import get_ipython

    return getattr(get_ipython().kernel, what)(code, *more)
