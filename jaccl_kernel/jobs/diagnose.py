"""From what the ranks wrote and how they ended to the first cause, with its fix. Pure; starts nothing.

The table holds the errors of JACCL, MLX and mlx-lm that people meet, most telling first. `secondary` marks
what a rank says when *another* one died: such a line is never reported as the cause while there is a better.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from jaccl_kernel.errors import RankDied
from jaccl_kernel.jobs.job import RankState


@dataclass(frozen=True)
class Known:
    """A text that is known to mean something."""

    pattern: str
    cause: str
    fix: str
    secondary: bool = False


KNOWN = (
    Known(
        r"No module named '?jaccl_kernel",
        "this package is not installed in the Python that ran there",
        "Install it in that environment (notebook 02, or `pip install`), or name another with --python.",
    ),
    Known(
        r"ModuleNotFoundError: No module named '?([\w.]+)",
        "a package is missing in the Python that ran there",
        "Install the same environment on every node, or name another interpreter with --python.",
    ),
    Known(
        r"bash: .*(No such file or directory|not found|cannot execute|Permission denied)",
        "the interpreter was not found there",
        "Give its absolute path with --python: a non-login shell on macOS has a short PATH.",
    ),
    Known(
        r"Could not find device (\S+) \(0 available\)",
        "this node offers no RDMA device at all: RDMA is off",
        "Enable RDMA over Thunderbolt on that Mac (notebook 01), then reboot it.",
    ),
    Known(
        r"Could not find device (\S+)",
        "the rdma matrix names a device that this node does not have",
        "Compare the matrix with `ibv_devices` there; device names can change after a reboot or re-cabling.",
    ),
    Known(
        r"No IPv4-mapped GID for this device",
        "a Thunderbolt port has no IPv4 address, so JACCL finds no usable GID",
        "Give the port an IPv4 address (169.254.x.x will do).",
    ),
    Known(
        r"Changing queue pair to RTR failed with errno 60",
        "the peer's GID cannot be reached over this port: a wrong cable or a wrong matrix cell",
        "Compare the rdma matrix with the cabling.",
    ),
    Known(
        r"Changing queue pair to RTR failed with errno 96",
        "the port's GID table is empty: it is a member of a bridge",
        "Take the port out of the bridge.",
    ),
    Known(
        r"Changing queue pair to RTR failed with errno 16",
        "RDMA state was left over from a crash",
        "Take the interface down, wait 15 s, and bring it up again; otherwise reboot that Mac.",
    ),
    Known(
        r"Changing queue pair to RTR failed with errno 22",
        "the port has no IPv4 GID at index 1 (no address, or a bridge member), or the mlx versions differ",
        "Give the port an IPv4 address, take it out of the bridge, use one mlx version everywhere.",
    ),
    Known(
        r"Creating the queue pair failed",
        "more than 10 queue pairs on one device",
        "One RDMA device serves one peer: correct the matrix. Do not retry.",
    ),
    Known(
        r"Register memory region failed",
        "over about 100 memory regions on one device: it serves two peers, or two jobs",
        "One device per peer in the matrix, and one job at a time.",
    ),
    Known(
        r"Couldn't allocate protection domain",
        "a wrong device, a port that is down, or a stale process that holds it",
        "Check the matrix and the port's state; end stale jobs; as a last resort reboot that Mac.",
    ),
    Known(
        r"Couldn't bind socket \(error: (49|99)\)",
        "the coordinator's address is not an address of rank 0",
        "Put rank 0's present LAN address into the hostfile (`ips` of the first host).",
    ),
    Known(
        r"Couldn't bind socket \(error: (48|98)\)|Address already in use",
        "the port is taken",
        "Stop the other job, or choose another with --port.",
    ),
    Known(
        r"Can't parse address",
        "the coordinator is not an IPv4 address with a port",
        "Put an IPv4 address of rank 0 first into `ips` of the first host.",
    ),
    Known(
        r"does not support (any sharding|tensor parallel|pipelin)",
        "this architecture cannot be split this way",
        "See `jaccl model` for what splits; use another model or fewer ranks.",
    ),
    Known(
        r"Cannot infer the shape of an empty array|Cannot shard the output of size|\[quantize\] The last dim",
        "the model's dimensions do not divide by the number of ranks",
        "See `jaccl model` for the numbers of ranks that it splits over.",
    ),
    Known(
        r"Resource limit \(\d+\) exceeded",
        "Metal ran out of buffers",
        "Use a smaller batch or a shorter prompt.",
    ),
    Known(
        r"Caused GPU Timeout Error",
        "the GPU waited too long, often for a collective that ran on the GPU stream",
        "Run the collective on the CPU stream.",
    ),
    Known(
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "ssh does not trust the host key",
        "Log in by hand once, after checking the key.",
    ),
    Known(
        r"Permission denied \(publickey",
        "ssh was refused: no key that the host accepts",
        "Set up key login (ssh-copy-id).",
    ),
    Known(
        r"Could not resolve hostname|Connection refused|Operation timed out|No route to host",
        "the host cannot be reached by ssh",
        "Check its name, that it is awake, and that Remote Login is on.",
    ),
    Known(
        r"Connection attempt \d+ waiting",
        "rank 0 could not be reached at the coordinator's address",
        "Check the address, the firewall and Local Network privacy on rank 0.",
        secondary=True,
    ),
    Known(
        r"(Recv|Send) failed with errno|Couldn't connect|connection to a peer was lost|\[ring\].*attempt",
        "another rank was gone first",
        "Read the other ranks' logs.",
        secondary=True,
    ),
)


def recognise(text: str) -> Known | None:
    """The known error that a text tells of, primary ones first."""
    return next((known for known in KNOWN if re.search(known.pattern, text)), None)


def died(ranks: Sequence[RankState]) -> RankDied:
    """The rank whose death explains the others', as an error with its last words and the fix.

    Prefers what is known to be a first cause, then a death by signal, then any error of its own, then the
    earliest exit; a rank that only lost its peer comes last.
    """
    suspects = [rank for rank in ranks if rank.error or (rank.returncode not in (None, 0) or not rank.done)]
    suspects = [rank for rank in suspects if rank.error or rank.returncode is not None] or list(ranks)
    culprit = min(suspects, key=_order)
    known = recognise(_words(culprit))
    stage = culprit.error.data["stage"] if culprit.error else culprit.stage
    told = _told(culprit)
    cause = f" ({known.cause})" if known else ""
    return RankDied(
        f"rank {culprit.number} {told} at stage '{stage}'{cause}",
        rank=culprit.number,
        where=culprit.name,
        fix=(culprit.error.data.get("fix") if culprit.error else "") or (known.fix if known else ""),
        returncode=culprit.returncode,
        last_words=tuple(culprit.tail)[-8:],
    )


def _told(rank: RankState) -> str:
    if rank.error:
        message = str(rank.error.data["message"]).strip()
        return f"failed with {rank.error.data['type']}: {message.splitlines()[-1] if message else ''}"
    if rank.returncode is None:
        return "went silent"
    return f"died ({describe_exit(rank.returncode)})"


def describe_exit(returncode: int) -> str:
    """An exit status in words: "exit status 1", "killed by SIGKILL"."""
    number = -returncode if returncode < 0 else returncode - 128  # a shell's 137 is SIGKILL too
    if returncode < 0 or returncode > 128:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"exit status {returncode}"
        hint = {"SIGSEGV": ", a segmentation fault", "SIGKILL": ", perhaps for lack of memory"}.get(name, "")
        return f"killed by {name}{hint}"
    return f"exit status {returncode}"


def _words(rank: RankState) -> str:
    own = str(rank.error.data["message"]) if rank.error else ""
    return "\n".join([*rank.tail, own])


def _order(rank: RankState) -> tuple[int, float]:
    known = recognise(_words(rank))
    at = min(rank.error.at if rank.error else float("inf"), rank.ended_at or float("inf"))
    if known and known.secondary:
        return 3, at
    if known:
        return 0, at
    if rank.returncode is not None and (rank.returncode < 0 or rank.returncode > 128):
        return 1, at
    return 2, at
