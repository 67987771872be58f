"""What is wrong with a hostfile: each problem with a code, its place, a sentence and a fix.

Three judges in one: what mlx.launch refuses, what JACCL refuses or dies of, and what both accept although it
cannot work. Only the file and the environment are looked at; whether it fits the cabling and the Macs as they
are is a matter for `wiring.py`. The matrix has its own rules in `check_matrix.py`. Pure: no I/O.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaccl_kernel.cluster.check_matrix import matrix_problems
from jaccl_kernel.cluster.hostfile import LOCAL, Hostfile, is_ssh_name, ssh_host
from jaccl_kernel.cluster.matrix import Verdict, verdict
from jaccl_kernel.cluster.problem import Problem, place
from jaccl_kernel.errors import HostfileError

__all__ = [
    "BACKENDS",
    "LAUNCH_VARIABLES",
    "Problem",
    "check",
    "effective_backend",
    "has_errors",
    "hostfile_verdict",
    "render",
    "to_json",
    "unreadable_json",
]

BACKENDS = ("jaccl", "jaccl-ring", "ring")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

# What JACCL and MLX read to find their place in a group (field guide; MLX's jaccl.cpp and ring.cpp)
_OVERRIDING = "JACCL prefers it to what mlx.launch sets, so all ranks that see it take the same value"
_REPLACED = "mlx.launch replaces it, but a program started without mlx.launch would try to join that group"
_RING = "being set at all, even to 0, makes JACCL prefer a ring"
LAUNCH_VARIABLES: dict[str, str] = {
    "JACCL_RANK": _OVERRIDING,
    "JACCL_IBV_DEVICES": _OVERRIDING,
    "JACCL_COORDINATOR": _OVERRIDING,
    "JACCL_RING": _RING,
    "MLX_RANK": _REPLACED,
    "MLX_IBV_DEVICES": _REPLACED,
    "MLX_JACCL_COORDINATOR": _REPLACED,
    "MLX_JACCL_RING": _RING,
    "MLX_HOSTFILE": _REPLACED,
}


def check(
    hostfile: Hostfile, *, backend: str | None = None, environ: Mapping[str, str] = os.environ
) -> list[Problem]:
    """All problems of a hostfile, errors first; an empty list is a file that should work.

    Whatever JACCL would not join into one group is an error; one cause is reported once.

    Args:
        hostfile: as it was read.
        backend: what the job will be launched with; None follows `effective_backend`.
        environ: the environment in which mlx.launch would start.
    """
    chosen = effective_backend(hostfile, backend)
    problems = [*_ssh_problems(hostfile), *_env_problems(hostfile.envs), *_inherited(environ)]
    if chosen not in BACKENDS:
        problems.append(
            Problem(
                "unknown-backend",
                "error",
                "backend",
                f"{chosen!r} is no backend for Macs on Thunderbolt.",
                f"Use one of {', '.join(BACKENDS)}.",
            )
        )
    elif len(hostfile) == 1:
        problems.append(
            Problem(
                "single-host",
                "warning",
                "hosts",
                "There is one host, so there is no group to join: a job on it runs without mlx.launch.",
                "Add the other Macs, if there are any.",
            )
        )
    elif chosen == "ring":
        problems += _ring_address_problems(hostfile)
    else:
        problems += _backend_missing(hostfile, backend)
        problems += _coordinator_problems(hostfile)
        problems += matrix_problems(hostfile, ring=chosen == "jaccl-ring")
    return sorted(problems, key=lambda problem: problem.severity != "error")


def effective_backend(hostfile: Hostfile, backend: str | None = None) -> str:
    """The backend of a launch: the one asked for, else the file's, else "jaccl" if any host has an rdma row.

    Otherwise "ring", mlx.launch's own choice.
    """
    return backend or hostfile.backend or ("jaccl" if any(host.rdma for host in hostfile.hosts) else "ring")


def hostfile_verdict(hostfile: Hostfile, backend: str | None = None) -> Verdict | None:
    """What JACCL makes of the file's matrix; None with a backend that does not look at it."""
    chosen = effective_backend(hostfile, backend)
    if chosen not in ("jaccl", "jaccl-ring"):
        return None
    return verdict(hostfile.rdma, prefer_ring=chosen == "jaccl-ring")


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any of them keeps the file from working."""
    return any(problem.severity == "error" for problem in problems)


def render(problems: Sequence[Problem]) -> str:
    """The problems as plain text, two lines each; a line that says so when there are none."""
    if not problems:
        return "ok       no problems found\n"
    return "".join(
        f"{problem.severity:<8} {problem.where}: {problem.message}\n         Fix: {problem.fix}\n"
        for problem in problems
    )


def to_json(
    hostfile_path: str | os.PathLike[str], problems: Sequence[Problem], verdict: Verdict | None
) -> dict[str, object]:
    """The same for programs: `ok` is true if no problem is an error; `verdict` is null without JACCL."""
    return {
        "hostfile": os.fspath(hostfile_path),
        "ok": not has_errors(problems),
        "verdict": None if verdict is None else {"kind": verdict.kind, "message": verdict.message},
        "problems": [problem.to_json() for problem in problems],
    }


def unreadable_json(hostfile_path: str | os.PathLike[str], error: HostfileError) -> dict[str, object]:
    """The same for a file that could not be read: `error` says why, and nothing was looked at."""
    told = {"what": error.what, "where": error.where, "fix": error.fix}
    return to_json(hostfile_path, [], None) | {"ok": False, "error": told}


def _ssh_problems(hostfile: Hostfile) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for rank, host in enumerate(hostfile.hosts):
        where = place(hostfile, rank)
        if not is_ssh_name(host.ssh):
            yield Problem(
                "ssh-name",
                "error",
                where,
                f"ssh cannot take {host.ssh!r} as a destination.",
                "Write the Mac's name or address, without spaces and without a leading dash.",
            )
            continue
        first = seen.setdefault(ssh_host(host.ssh), rank)
        if first != rank and host.ssh != LOCAL:
            yield Problem(
                "ssh-name-twice",
                "error",
                where,
                f"It is the same Mac as host {first}: two ranks would share its devices and memory.",
                f"Name each Mac once. Only the literal {LOCAL} may repeat.",
            )
        elif ssh_host(host.ssh) in ("localhost", "::1"):
            yield Problem(
                "ssh-localhost",
                "warning",
                where,
                f"mlx.launch reaches {host.ssh} by ssh, even from this Mac itself.",
                f"Write {LOCAL}, which runs here without ssh, or the name that the other Macs use.",
            )


def _env_problems(envs: Sequence[str]) -> Iterator[Problem]:
    for position, entry in enumerate(envs):
        where = f"envs[{position}]"
        key, equals, value = entry.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            yield Problem(
                "env-name",
                "warning",
                where,
                f"{entry!r} does not start with the name of a variable: no rank will see it.",
                "Write it as KEY=VALUE.",
            )
        elif key in LAUNCH_VARIABLES:
            yield Problem(
                "env-launch-variable",
                "error" if LAUNCH_VARIABLES[key] is _OVERRIDING else "warning",
                where,
                f"{key} tells a rank its place in the group: {LAUNCH_VARIABLES[key]}.",
                "Remove the entry.",
            )
        elif not equals:
            yield Problem(
                "env-value",
                "warning",
                where,
                f"{key} has no value: mlx.launch sets it to nothing.",
                f"Write {key}=VALUE, or remove the entry.",
            )
        elif key == "MLX_METAL_FAST_SYNCH" and value.strip() not in ("", "0"):
            yield Problem(
                "fast-synch",
                "warning",
                where,
                "MLX_METAL_FAST_SYNCH can make generation faster, but also deadlock it and wedge the GPU "
                "until a reboot; MLX's documentation says it is best left unset.",
                "Remove it, and measure with and without before you choose it.",
            )


def _inherited(environ: Mapping[str, str]) -> Iterator[Problem]:
    for variable, effect in LAUNCH_VARIABLES.items():
        if variable in environ:
            yield Problem(
                "inherited-variable",
                "warning",
                "environment",
                f"{variable} is set where the job starts, and ranks on this machine inherit it: {effect}.",
                f"unset {variable}",
            )


def _backend_missing(hostfile: Hostfile, backend: str | None) -> Iterator[Problem]:
    if not backend and not hostfile.backend:
        yield Problem(
            "backend-missing",
            "warning",
            "backend",
            "The file names no backend: plain mlx.launch would use the TCP ring and say nothing.",
            'Add "backend": "jaccl".',
        )


def _coordinator_problems(hostfile: Hostfile) -> Iterator[Problem]:
    address = hostfile.coordinator
    where = place(hostfile, 0, "ips[0]")
    fix = "Write rank 0's own address on the LAN: on that Mac, ipconfig getifaddr en0 (or en1)."
    if address is None:
        yield Problem(
            "coordinator-missing",
            "error",
            place(hostfile, 0, "ips"),
            "Rank 0 has no address, and all ranks meet there: mlx.launch refuses the file.",
            fix,
        )
        return
    if reason := _no_coordinator(address, hostfile):
        yield Problem("coordinator-address", "error", where, reason, fix)
    elif ipaddress.IPv4Address(address).is_link_local:
        yield Problem(
            "coordinator-link-local",
            "warning",
            where,
            f"{address} is link-local: it belongs to one cable, and the other Macs may not reach it.",
            fix,
        )


def _no_coordinator(address: str, hostfile: Hostfile) -> str:
    """Why the ranks cannot meet at an address, or "". JACCL adds the port itself, and knows IPv4 only."""
    parsed = _parsed(address)
    if parsed is None:
        if _is_placeholder(address):
            return f"{address} is still the template's placeholder."
        if re.fullmatch(r"\d+(\.\d+){3}:\d+", address):
            return f"{address} ends in a port, and mlx.launch adds one."
        return f"{address!r} is no IPv4 address: JACCL looks up no names."
    if parsed.version == 6:
        return f"{address} is an IPv6 address, which JACCL cannot parse."
    if parsed.is_loopback and any(host.ssh != LOCAL for host in hostfile.hosts):
        return f"{address} means each Mac itself: the other Macs cannot reach rank 0 there."
    if parsed.is_unspecified or parsed.is_multicast or parsed == _BROADCAST:
        return f"{address} is the address of no single Mac."
    for rank, host in enumerate(hostfile.hosts[1:], start=1):
        if address in host.ips and ssh_host(host.ssh) != ssh_host(hostfile.hosts[0].ssh):
            return (
                f"{address} stands at host {rank} ({host.name}) too, and rank 0 can only listen on its own."
            )
    return ""


def _ring_address_problems(hostfile: Hostfile) -> Iterator[Problem]:
    fix = "Write its address on the network that the ring shall use."
    remote = any(host.ssh != LOCAL for host in hostfile.hosts)
    owners: dict[str, int] = {}
    for rank, host in enumerate(hostfile.hosts):
        if not host.ips:
            yield Problem(
                "ips-missing",
                "error",
                place(hostfile, rank, "ips"),
                "The ring backend needs an address of every host, and this one has none.",
                fix,
            )
        for position, address in enumerate(host.ips):
            where = place(hostfile, rank, f"ips[{position}]")
            if reason := _no_ring_address(address):
                yield Problem("ips-address", "error", where, reason, fix)
            elif _parsed(address) is None:  # MLX's ring does look names up, unlike JACCL
                yield Problem("ips-address", "warning", where, f"{address!r} is no IP address.", fix)
            elif ipaddress.ip_address(address).is_loopback:
                if remote:
                    what = (
                        f"{address} means each Mac itself: its neighbours in the ring cannot reach it there."
                    )
                    yield Problem("ips-loopback", "error", where, what, fix)
            else:
                first = owners.setdefault(address, rank)
                if ssh_host(hostfile.hosts[first].ssh) != ssh_host(host.ssh):
                    what = f"{address} stands at host {first} ({hostfile.hosts[first].name}) too."
                    yield Problem("ips-twice", "error", where, what, fix)


def _no_ring_address(address: str) -> str:
    """Why no host of MLX's ring can listen at an address, or ""."""
    parsed = _parsed(address)
    if _is_placeholder(address):
        return f"{address} is still the template's placeholder."
    if not address.strip():
        return f"{address!r} is no address at all."
    if ":" in address:
        return (
            f"{address} has a colon, from which on MLX's ring takes it for a port: write IPv4, and no port."
        )
    if parsed and (parsed.is_unspecified or parsed.is_multicast or parsed == _BROADCAST):
        return f"{address} is the address of no single Mac."
    return ""


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _is_placeholder(address: str) -> bool:
    return address.startswith("<") and address.endswith(">")
