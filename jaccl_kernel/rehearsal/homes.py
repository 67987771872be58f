"""The simulated Macs on this machine: a home folder, a model folder and a set of commands for each.

Each rank uses the Mac with its rank number. The Macs are in the cache folder by name: copied files persist
when another hostfile describes them, and changes by commands persist until a restart. Nothing here proves
anything about RDMA.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.core.errors import JacclError
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.rehearsal.folder import MacFolder
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.models import give_back, place_model, withhold
from jaccl_kernel.rehearsal.node import SimulatedNode
from jaccl_kernel.rehearsal.plan import KEY, NOTE, RehearsalPlan, is_rehearsal, make_hostfile
from jaccl_kernel.rehearsal.tools import ssh_error

__all__ = [
    "KEY",
    "NOTE",
    "SimulatedMac",
    "is_rehearsal",
    "macs",
    "make_hostfile",
    "place_model",
    "prepare",
    "ranks_at_once",
    "usual_ranks",
]


@dataclass(frozen=True)
class SimulatedMac(MacFolder):
    """One simulated Mac: its home, its models and its commands.

    `ssh_error` is ssh's error message if the Mac is unreachable.
    """

    name: str
    ssh_error: str | None = None

    @property
    def python(self) -> Path:
        """Its interpreter, which reports the versions of the description but runs our interpreter."""
        return self.commands / "python3"

    def environment(self) -> dict[str, str]:
        """The environment variables of a process on this Mac."""
        path = f"{self.commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # share this machine's cache, to avoid four copies of the demo model
        return {"HOME": str(self.home), "PATH": path, "JACCL_CACHE": str(cache_dir())}

    def node(self) -> Node:
        """The node that runs commands on this Mac."""
        return SimulatedNode(self.name, self.home, self.environment(), self.ssh_error)


def macs(hostfile: Hostfile) -> list[SimulatedMac]:
    """The simulated Macs of a rehearsal's hostfile, one per rank; their homes may not exist yet.

    Raises:
        HostfileError, InputError: the hostfile is not a valid rehearsal.
    """
    return _macs(hostfile, RehearsalPlan.of(hostfile).spec())


def prepare(hostfile: Hostfile, *, restart: bool = False) -> list[SimulatedMac]:
    """Create or update the Macs' homes from the hostfile, and return the Macs.

    Args:
        hostfile: the hostfile of a rehearsal.
        restart: revert changes by commands, and restore removed model files.

    Raises:
        HostfileError, InputError: the hostfile is not a valid rehearsal.
        JacclError: the homes cannot be written.
    """
    plan = RehearsalPlan.of(hostfile)
    spec = plan.spec()
    found = _macs(hostfile, spec)
    try:
        for mac in found:
            node = plan.macs.index(mac.name)
            if restart:
                mac.restart()
                give_back(mac)
            mac.prepare(plan, spec, node)
            if spec.macs[node].partial_model:
                withhold(mac)
            else:
                give_back(mac)
    except OSError as error:
        raise JacclError(
            f"cannot create the homes of the simulated Macs: {error.strerror or error}",
            where=str(cache_dir() / KEY),
            fix="Free disk space, or set JACCL_CACHE to another folder.",
        ) from error
    return found


def ranks_at_once(size: int) -> int:
    """The number of simulated Macs that can run a rank at full speed: one per core."""
    return max(1, min(size, os.cpu_count() or 1))


def usual_ranks(hostfile: Hostfile) -> int:
    """The number of ranks of a job without a choice: all; of simulated Macs, as many as run at full speed."""
    return ranks_at_once(len(hostfile)) if is_rehearsal(hostfile) else len(hostfile)


def _macs(hostfile: Hostfile, spec: ClusterSpec) -> list[SimulatedMac]:
    described = {mac.name: mac for mac in spec.macs}
    root = cache_dir().absolute() / KEY
    return [
        SimulatedMac(root / host.name, host.name, ssh_error(described[host.name])) for host in hostfile.hosts
    ]
