"""The cluster that every step takes: a hostfile, or only names, and one Node per host.

Only this module knows whether the Macs are real or simulated; the steps do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.hostfile.hostfile import Host, Hostfile
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import node_for
from jaccl_kernel.rehearsal import homes
from jaccl_kernel.topology.wiring import distinct


@dataclass(frozen=True)
class Cluster:
    """The nodes of a hostfile, in rank order.

    Attributes:
        hostfile: as read; one made from bare names has no addresses and no matrix yet.
        nodes: one for each of its hosts.
        rehearsal: whether the Macs are simulated.
        rank_env: extra environment variables of each rank (a simulated Mac's home), or empty.
    """

    hostfile: Hostfile
    nodes: tuple[Node, ...]
    rehearsal: bool = False
    rank_env: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def of(cls, hostfile: Hostfile) -> "Cluster":
        """Return the cluster that a hostfile describes."""
        if homes.is_rehearsal(hostfile):
            macs = homes.prepare(hostfile)
            return cls(
                hostfile,
                tuple(mac.node() for mac in macs),
                rehearsal=True,
                rank_env=tuple(mac.environment() for mac in macs),
            )
        names = distinct([host.name for host in hostfile.hosts])  # reports need unique names
        nodes = (node_for(host.ssh, name) for host, name in zip(hostfile.hosts, names, strict=True))
        return cls(hostfile, tuple(nodes))

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Return the cluster of a hostfile on disk.

        Raises:
            HostfileError: the file cannot be read.
        """
        return cls.of(Hostfile.read(path))

    @classmethod
    def named(cls, names: Sequence[str]) -> "Cluster":
        """Return a cluster of ssh names that has no hostfile yet.

        Raises:
            InputError: there is no name, an empty name, or a duplicate.
        """
        if not names or not all(name.strip() for name in names):
            raise InputError(
                "no host, or an empty host name", fix="Name the Macs: --hosts mac1.local,mac2.local"
            )
        duplicate = next((name for name in names if list(names).count(name) > 1), None)
        if duplicate is not None:
            raise InputError(f"duplicate host {duplicate}", fix="Name each Mac once, rank 0 first.")
        return cls.of(Hostfile(tuple(Host(ssh=name) for name in names)))

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes' names in reports."""
        return tuple(node.name for node in self.nodes)
