"""The simulated Macs as places on this machine: a home, a model folder and a set of commands for each.

A rehearsal's hostfile names 127.0.0.1 for every rank (the only name that mlx.launch runs locally), a `name`
for each, and has a top-level key `rehearsal`. A rank takes its Mac from its rank number. Nothing here, and
nothing that runs on it, proves anything about RDMA.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from jaccl_kernel.cluster.hostfile import Host, Hostfile
from jaccl_kernel.errors import JacclError
from jaccl_kernel.paths import cache_dir

KEY = "rehearsal"
NOTE = "REHEARSAL: simulated Macs on one machine. It proves nothing about RDMA."


@dataclass(frozen=True)
class SimulatedMac:
    """One simulated Mac: where its user lives, where its models lie, where its commands are."""

    name: str
    home: Path

    @property
    def models(self) -> Path:
        """Its own model folder."""
        return self.home / "models"

    @property
    def commands(self) -> Path:
        """The folder that stands first in its PATH."""
        return self.home / "bin"

    def environment(self) -> dict[str, str]:
        """What a process on this Mac finds in its environment."""
        path = f"{self.commands}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        # the caches stay this machine's: four copies of the demo model would serve nobody
        return {"HOME": str(self.home), "PATH": path, "JACCL_CACHE": str(cache_dir())}


def is_rehearsal(hostfile: Hostfile) -> bool:
    """Whether a hostfile is one of simulated Macs."""
    return KEY in hostfile.extra


def macs(hostfile: Hostfile) -> list[SimulatedMac]:
    """The simulated Macs of a rehearsal's hostfile, one a rank; their homes need not exist yet."""
    root = cache_dir() / "rehearsal"
    return [SimulatedMac(host.name, root / host.name) for host in hostfile.hosts]


def prepare(hostfile: Hostfile) -> list[SimulatedMac]:
    """Make the homes of a rehearsal's Macs (again, if they stand already) and return them.

    Raises:
        JacclError: the homes cannot be written.
    """
    found = macs(hostfile)
    try:
        for mac in found:
            mac.models.mkdir(parents=True, exist_ok=True)
            mac.commands.mkdir(exist_ok=True)
    except OSError as error:
        raise JacclError(
            f"the simulated Macs' homes cannot be made: {error.strerror}",
            where=str(cache_dir() / "rehearsal"),
            fix="Free some space there, or set JACCL_CACHE to another folder.",
        ) from error
    return found


def make_hostfile(count: int = 4) -> Hostfile:
    """The hostfile of a rehearsal with `count` simulated Macs (1 to 8)."""
    hosts = tuple(
        Host(ssh="127.0.0.1", ips=("127.0.0.1",), rdma=(), extra={"name": f"mac{number}"})
        for number in range(1, count + 1)
    )
    return Hostfile(hosts=hosts, backend="ring", envs=(), extra={KEY: NOTE})


def ranks_at_once(size: int) -> int:
    """How many of the simulated Macs can run a rank at full speed: one a core."""
    return max(1, min(size, os.cpu_count() or 1))
