"""A hostfile template for `jaccl hostfile new`, to edit."""

from collections.abc import Sequence

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.hostfile.hostfile import LOCAL, PLACEHOLDER, Cell, Host, Hostfile, is_ssh_name, ssh_host
from jaccl_kernel.hostfile.matrix import MESH_MAX_RANKS


def template(names: Sequence[str], matrix: Sequence[Sequence[Cell]] | None = None) -> Hostfile:
    """A JACCL hostfile template for these ssh names in rank order.

    Rank 0's address is a placeholder that `check` reports as an error. Without a matrix, it is a full mesh
    with guessed devices: rdma_en3, rdma_en4 and so on for the peers in rank order (en2 of a Mac Studio
    carries no RDMA). The user must compare every cell with the cabling, since device numbers depend neither
    on port numbers nor on the order of plugging.

    Raises:
        InputError: no name, more names than a mesh supports, an invalid name, a duplicate (127.0.0.1 may
            repeat), or a matrix of another size.
    """
    if matrix is not None and len(matrix) != len(names):
        raise InputError(
            f"the device file has {len(matrix)} rows, but there are {len(names)} hosts",
            fix="Pass one ssh name per row, in rank order: --hosts A,B,…",
        )
    if not 1 <= len(names) <= MESH_MAX_RANKS:
        raise InputError(
            f"a mesh needs 1 to {MESH_MAX_RANKS} hosts (got {len(names)})",
            fix="Pass the hosts in rank order.",
        )
    for rank, name in enumerate(names):
        if not is_ssh_name(name):
            raise InputError(
                f"host {rank} has an invalid ssh name: {name!r}",
                fix="Pass ssh host names without spaces: macstudio1.local,macstudio2.local",
            )
        if name != LOCAL and ssh_host(name) in map(ssh_host, names[:rank]):
            raise InputError(f"duplicate host {name}", fix="Pass every Mac once: it is one rank.")
    size = len(names)
    hosts = []
    for rank, name in enumerate(names):
        devices = iter(f"rdma_en{number}" for number in range(3, size + 2))
        row = tuple(None if peer == rank else next(devices) for peer in range(size))
        cells: tuple[Cell, ...] = row if matrix is None else tuple(matrix[rank])
        hosts.append(Host(name, (PLACEHOLDER,) if rank == 0 and size > 1 else (), cells if size > 1 else ()))
    return Hostfile(tuple(hosts), backend="jaccl" if size > 1 else "")
