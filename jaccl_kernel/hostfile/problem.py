"""A problem of a hostfile, and the text form of its location. Shared by all checks."""

from dataclasses import asdict, dataclass
from typing import Literal

from jaccl_kernel.hostfile.hostfile import Hostfile

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """An error or a warning about a hostfile.

    Attributes:
        code: the rule, in kebab-case; stable, for programs.
        severity: "error" if a job cannot run as the file specifies, else "warning".
        where: the location, such as "host 2 (macstudio3.local), rdma[0]".
        message: one sentence.
        fix: how to fix it.
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
    """A location in a hostfile: the host by rank and name, and the key."""
    host = f"host {rank} ({hostfile.hosts[rank].name or 'unnamed'})"
    return f"{host}, {key}" if key else host
