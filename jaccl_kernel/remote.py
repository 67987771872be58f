"""What the host asks of resident ranks, as ipyparallel sends it: a call by name. Imported on both sides."""

from typing import Any


def call(number: int, name: str, arguments: dict[str, Any]) -> Any:
    """Run on every engine: the rank side's `Resident.call`, found where that runs."""
    import importlib

    # by name: the host side imports this module too, and must not import the ranks'
    return importlib.import_module("jaccl_kernel.ranks.resident").here.call(number, name, arguments)
