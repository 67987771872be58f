"""Sample hostfiles: a valid one, and functions that break it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.hostfile.lint import check
from jaccl_kernel.hostfile.template import template


def cluster(size: int = 4, **changes: Any) -> Hostfile:
    """A valid hostfile of `size` Macs, with some of its fields changed."""
    made = template([f"m{rank}.local" for rank in range(size)])
    first = dataclasses.replace(made.hosts[0], ips=("192.168.1.10",))
    return dataclasses.replace(made, hosts=(first, *made.hosts[1:]), **changes)


def changed(hostfile: Hostfile, rank: int, **fields: Any) -> Hostfile:
    """The hostfile with other fields at one host."""
    hosts = list(hostfile.hosts)
    hosts[rank] = dataclasses.replace(hosts[rank], **fields)
    return dataclasses.replace(hostfile, hosts=tuple(hosts))


def with_cells(hostfile: Hostfile, *cells: tuple[int, int, object]) -> Hostfile:
    """The hostfile with other cells, each given as (rank, column, value)."""
    for rank, column, value in cells:
        row = list(hostfile.hosts[rank].rdma)
        row[column] = value
        hostfile = changed(hostfile, rank, rdma=tuple(row))
    return hostfile


def found(
    hostfile: Hostfile, backend: str | None = None, environ: Mapping[str, str] | None = None
) -> list[tuple[str, str, str]]:
    """The problems as (code, severity, where)."""
    problems = check(hostfile, backend=backend, environ=environ or {})
    assert all(problem.message.endswith(".") and problem.fix for problem in problems)
    return [(problem.code, problem.severity, problem.where) for problem in problems]
