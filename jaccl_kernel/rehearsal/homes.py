"""The simulated Macs as places on this machine: a home, a model folder and a set of commands for each.

A rank takes its Mac from its rank number. The Macs stand in the cache folder by their names: what was copied
to them stays when another hostfile describes them, and what was typed on them stays until they are restarted.
Nothing here, and nothing that runs on it, proves anything about RDMA.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.shell import Node
from jaccl_kernel.errors import JacclError
from jaccl_kernel.paths import cache_dir
from jaccl_kernel.rehearsal.folder import MacFolder
from jaccl_kernel.rehearsal.macs import ClusterSpec
from jaccl_kernel.rehearsal.models import give_back, place_model, withhold
from jaccl_kernel.rehearsal.node import SimulatedNode
from jaccl_kernel.rehearsal.plan import KEY, NOTE, Plan, is_rehearsal, make_hostfile
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
]


@dataclass(frozen=True)
class SimulatedMac(MacFolder):
    """One simulated Mac: where its user lives, where its models lie, where its commands are.

    `refusal` is what ssh says of it, if it is out of reach.
    """

    name: str
    refusal: str | None = None

    @property
    def python(self) -> Path:
        """Its interpreter: tells the versions of the description, and runs as the one that we run on."""
        return self.commands / "python3"

    def environment(self) -> dict[str, str]:
        """What a process on this Mac finds in its environment."""
        path = f"{self.commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # the caches stay this machine's: four copies of the demo model would serve nobody
        return {"HOME": str(self.home), "PATH": path, "JACCL_CACHE": str(cache_dir())}

    def node(self) -> Node:
        """The way to it, as to any node."""
        return SimulatedNode(self.name, self.home, self.environment(), self.refusal)


def macs(hostfile: Hostfile) -> list[SimulatedMac]:
    """The simulated Macs of a rehearsal's hostfile, one a rank; their homes need not exist yet.

    Raises:
        HostfileError, InputError: the hostfile describes no rehearsal.
    """
    return _macs(hostfile, Plan.of(hostfile).spec())


def prepare(hostfile: Hostfile, *, restart: bool = False) -> list[SimulatedMac]:
    """Make the Macs' homes be as the hostfile describes them, as far as they are not, and return the Macs.

    Args:
        hostfile: a rehearsal's.
        restart: forget what was typed on the Macs, and make their models whole again.

    Raises:
        HostfileError, InputError: the hostfile describes no rehearsal.
        JacclError: the homes cannot be written.
    """
    plan = Plan.of(hostfile)
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
            f"the simulated Macs' homes cannot be made: {error.strerror or error}",
            where=str(cache_dir() / KEY),
            fix="Free some space there, or set JACCL_CACHE to another folder.",
        ) from error
    return found


def ranks_at_once(size: int) -> int:
    """How many of the simulated Macs can run a rank at full speed: one a core."""
    return max(1, min(size, os.cpu_count() or 1))


def _macs(hostfile: Hostfile, spec: ClusterSpec) -> list[SimulatedMac]:
    described = {mac.name: mac for mac in spec.macs}
    root = cache_dir().absolute() / KEY
    return [
        SimulatedMac(root / host.name, host.name, ssh_error(described[host.name])) for host in hostfile.hosts
    ]
