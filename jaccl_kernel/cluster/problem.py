"""One finding about a hostfile, and how its place is written. Shared by the rules in `check*.py`."""

from dataclasses import asdict, dataclass
from typing import Literal

from jaccl_kernel.cluster.hostfile import Hostfile

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or likely to be.

    Attributes:
        code: the rule, in kebab-case; stable, for programs.
        severity: "error" keeps a job from running as the file says, "warning" does not.
        where: its place, like "host 2 (macstudio3.local), rdma[0]".
        message: a sentence.
        fix: what to do.
    """

    code: str
    severity: Severity
    where: str
    message: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """The problem as a JSON object."""
        return asdict(self)


def place(hostfile: Hostfile, rank: int, key: str = "") -> str:
    """Where something stands: the host by rank and name, and the key in it."""
    host = f"host {rank} ({hostfile.hosts[rank].name or 'unnamed'})"
    return f"{host}, {key}" if key else host
