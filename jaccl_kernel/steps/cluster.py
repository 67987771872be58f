"""A cluster as every step takes it: a hostfile, or only names, and a way to each node.

The one place that knows whether the Macs are real or simulated; the steps never ask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.cluster.hostfile import Host, Hostfile
from jaccl_kernel.cluster.shell import Node, node_for
from jaccl_kernel.cluster.wiring import distinct
from jaccl_kernel.errors import InputError
from jaccl_kernel.rehearsal import homes


@dataclass(frozen=True)
class Cluster:
    """The nodes of a hostfile, in rank order.

    Attributes:
        hostfile: as it was read; one made from bare names has no addresses and no matrix yet.
        nodes: a way to each of its hosts.
        rehearsal: whether they are simulated Macs.
        rank_env: what each rank's environment gets on this machine (a simulated Mac's home), or nothing.
    """

    hostfile: Hostfile
    nodes: tuple[Node, ...]
    rehearsal: bool = False
    rank_env: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def of(cls, hostfile: Hostfile) -> "Cluster":
        """The cluster that a hostfile describes."""
        if homes.is_rehearsal(hostfile):
            macs = homes.prepare(hostfile)
            return cls(
                hostfile,
                tuple(mac.node() for mac in macs),
                rehearsal=True,
                rank_env=tuple(mac.environment() for mac in macs),
            )
        names = distinct([host.name for host in hostfile.hosts])  # by which reports tell the nodes apart
        nodes = (node_for(host.ssh, name) for host, name in zip(hostfile.hosts, names, strict=True))
        return cls(hostfile, tuple(nodes))

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """The cluster of a hostfile on disk.

        Raises:
            HostfileError: it cannot be read.
        """
        return cls.of(Hostfile.read(path))

    @classmethod
    def named(cls, names: Sequence[str]) -> "Cluster":
        """A cluster of ssh names that has no hostfile yet.

        Raises:
            InputError: no names, an empty one, or one twice.
        """
        if not names or not all(name.strip() for name in names):
            raise InputError("no host, or an empty name", fix="Name the Macs: --hosts mac1.local,mac2.local")
        twice = next((name for name in names if list(names).count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{twice} is named twice", fix="Name each Mac once, rank 0 first.")
        return cls.of(Hostfile(tuple(Host(ssh=name) for name in names)))

    @property
    def names(self) -> tuple[str, ...]:
        """What reports call the nodes."""
        return tuple(node.name for node in self.nodes)
