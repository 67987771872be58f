"""Checks a hostfile: each problem has a code, a location, a sentence and a fix. Pure.

The checks cover what mlx.launch refuses, what JACCL refuses or crashes on, and what both accept although it
cannot work. They use only the file and the environment; `topology/compare.py` compares the file with the Macs
and cables. `lint_matrix.py` has the rules of the rdma matrix.
"""

import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jaccl_kernel.core.errors import HostfileError
from jaccl_kernel.core.options import BACKENDS
from jaccl_kernel.hostfile.hostfile import LOCAL, Hostfile, is_ssh_name, ssh_host
from jaccl_kernel.hostfile.lint_matrix import matrix_problems
from jaccl_kernel.hostfile.matrix import Verdict, verdict
from jaccl_kernel.hostfile.problem import Problem, place

__all__ = [
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

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")

# The variables from which JACCL and MLX take a rank's position in the group (MLX's jaccl.cpp and ring.cpp)
_OVERRIDING = "it overrides the value that mlx.launch sets, so all ranks that inherit it have the same value"
_REPLACED = "mlx.launch replaces it, but a program started without mlx.launch tries to join that group"
_RING = "any value, even 0, makes JACCL prefer a ring"
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
    """Return all problems of a hostfile, errors first; an empty list means that the file should work.

    Every file from which JACCL does not form one group has an error; each cause is reported once.

    Args:
        hostfile: the hostfile to check.
        backend: the backend of the job; None means `effective_backend`.
        environ: the environment in which mlx.launch starts.
    """
    chosen = effective_backend(hostfile, backend)
    problems = [*_ssh_problems(hostfile), *_env_problems(hostfile.envs), *_inherited(environ)]
    if chosen not in BACKENDS:
        problems.append(
            Problem(
                "unknown-backend",
                "error",
                "backend",
                f"Unknown backend {chosen!r}.",
                f"Use one of {', '.join(BACKENDS)}.",
            )
        )
    elif len(hostfile) == 1:
        problems.append(
            Problem(
                "single-host",
                "warning",
                "hosts",
                "The hostfile has one host, so there is no group: its job runs without mlx.launch.",
                "Add the other Macs, if any.",
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
    """The backend of a launch: the given one, else the file's, else "jaccl" if any host has an rdma row.

    Otherwise "ring", which is mlx.launch's default.
    """
    return backend or hostfile.backend or ("jaccl" if any(host.rdma for host in hostfile.hosts) else "ring")


def hostfile_verdict(hostfile: Hostfile, backend: str | None = None) -> Verdict | None:
    """The verdict on the file's matrix; None if the backend does not use it."""
    chosen = effective_backend(hostfile, backend)
    if chosen not in ("jaccl", "jaccl-ring"):
        return None
    return verdict(hostfile.rdma, prefer_ring=chosen == "jaccl-ring", mesh_wires="all")


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any problem is an error."""
    return any(problem.severity == "error" for problem in problems)


def render(problems: Sequence[Problem]) -> str:
    """The problems as plain text, two lines each, or one line if there are none."""
    if not problems:
        return "ok       no problems found\n"
    return "".join(
        f"{problem.severity:<8} {problem.where}: {problem.message}\n         Fix: {problem.fix}\n"
        for problem in problems
    )


def to_json(
    hostfile_path: str | os.PathLike[str], problems: Sequence[Problem], verdict: Verdict | None
) -> dict[str, object]:
    """The problems as JSON: `ok` is true if no problem is an error; `verdict` is null without JACCL."""
    return {
        "hostfile": os.fspath(hostfile_path),
        "ok": not has_errors(problems),
        "verdict": None if verdict is None else {"kind": verdict.kind, "message": verdict.message},
        "problems": [problem.to_json() for problem in problems],
    }


def unreadable_json(hostfile_path: str | os.PathLike[str], error: HostfileError) -> dict[str, object]:
    """The JSON for an unreadable file: `error` has the reason, and no check was made."""
    details = {"what": error.what, "where": error.where, "fix": error.fix}
    return to_json(hostfile_path, [], None) | {"ok": False, "error": details}


def _ssh_problems(hostfile: Hostfile) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for rank, host in enumerate(hostfile.hosts):
        where = place(hostfile, rank)
        if not is_ssh_name(host.ssh):
            yield Problem(
                "ssh-name",
                "error",
                where,
                f"{host.ssh!r} is not a valid ssh destination.",
                "Write the Mac's host name or address, without spaces and without a leading dash.",
            )
            continue
        first = seen.setdefault(ssh_host(host.ssh), rank)
        if first != rank and host.ssh != LOCAL:
            yield Problem(
                "ssh-name-twice",
                "error",
                where,
                f"Same Mac as host {first}: two ranks would share its devices and memory.",
                f"List each Mac once. Only the literal {LOCAL} may repeat.",
            )
        elif ssh_host(host.ssh) in ("localhost", "::1"):
            yield Problem(
                "ssh-localhost",
                "warning",
                where,
                f"mlx.launch uses ssh for {host.ssh}, even though it is this Mac.",
                f"Write {LOCAL}, which runs locally without ssh, or the name that the other Macs use.",
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
                f"{entry!r} does not start with a valid variable name, so mlx.launch ignores it.",
                "Write it as KEY=VALUE.",
            )
        elif key in LAUNCH_VARIABLES:
            yield Problem(
                "env-launch-variable",
                "error" if LAUNCH_VARIABLES[key] is _OVERRIDING else "warning",
                where,
                f"{key} sets a rank's position in the group: {LAUNCH_VARIABLES[key]}.",
                "Remove the entry.",
            )
        elif not equals:
            yield Problem(
                "env-value",
                "warning",
                where,
                f"{key} has no value: mlx.launch sets it to an empty string.",
                f"Write {key}=VALUE, or remove the entry.",
            )
        elif key == "MLX_METAL_FAST_SYNCH" and value.strip() not in ("", "0"):
            yield Problem(
                "fast-synch",
                "warning",
                where,
                "MLX_METAL_FAST_SYNCH can make generation faster, but it can also deadlock and wedge the GPU "
                "until a reboot; MLX's documentation recommends to leave it unset.",
                "Remove it, or compare benchmarks with and without it first.",
            )


def _inherited(environ: Mapping[str, str]) -> Iterator[Problem]:
    for variable, effect in LAUNCH_VARIABLES.items():
        if variable in environ:
            yield Problem(
                "inherited-variable",
                "warning",
                "environment",
                f"{variable} is set in the environment, and ranks on this machine inherit it: {effect}.",
                f"Run: unset {variable}",
            )


def _backend_missing(hostfile: Hostfile, backend: str | None) -> Iterator[Problem]:
    if not backend and not hostfile.backend:
        yield Problem(
            "backend-missing",
            "warning",
            "backend",
            "The file has no backend: plain mlx.launch uses the ring backend without a warning.",
            'Add "backend": "jaccl".',
        )


def _coordinator_problems(hostfile: Hostfile) -> Iterator[Problem]:
    address = hostfile.coordinator
    where = place(hostfile, 0, "ips[0]")
    fix = "Write rank 0's LAN address; on that Mac: ipconfig getifaddr en0 (or en1)."
    if address is None:
        yield Problem(
            "coordinator-missing",
            "error",
            place(hostfile, 0, "ips"),
            "Rank 0 has no address, so there is no coordinator: mlx.launch refuses the file.",
            fix,
        )
        return
    if reason := _invalid_coordinator(address, hostfile):
        yield Problem("coordinator-address", "error", where, reason, fix)
    elif ipaddress.IPv4Address(address).is_link_local:
        yield Problem(
            "coordinator-link-local",
            "warning",
            where,
            f"{address} is link-local, so Macs on other cables may not reach it.",
            fix,
        )


def _invalid_coordinator(address: str, hostfile: Hostfile) -> str:
    """Why an address cannot be the coordinator, or "". mlx.launch adds the port; JACCL supports only IPv4."""
    parsed = _parsed(address)
    if parsed is None:
        if _is_placeholder(address):
            return f"{address} is the placeholder of a template."
        if re.fullmatch(r"\d+(\.\d+){3}:\d+", address):
            return f"{address} has a port, but mlx.launch adds one."
        return f"{address!r} is not an IPv4 address: JACCL does not resolve names."
    if parsed.version == 6:
        return f"{address} is an IPv6 address, which JACCL does not support."
    if parsed.is_loopback and any(host.ssh != LOCAL for host in hostfile.hosts):
        return f"{address} is a loopback address: the other Macs cannot reach rank 0 there."
    if parsed.is_unspecified or parsed.is_multicast or parsed == _BROADCAST:
        return f"{address} is not the address of a single host."
    for rank, host in enumerate(hostfile.hosts[1:], start=1):
        if address in host.ips and ssh_host(host.ssh) != ssh_host(hostfile.hosts[0].ssh):
            return f"{address} is also listed for host {rank} ({host.name}), but must belong to rank 0 alone."
    return ""


def _ring_address_problems(hostfile: Hostfile) -> Iterator[Problem]:
    fix = "Write the host's address on the network that the ring should use."
    remote = any(host.ssh != LOCAL for host in hostfile.hosts)
    owners: dict[str, int] = {}
    for rank, host in enumerate(hostfile.hosts):
        if not host.ips:
            yield Problem(
                "ips-missing",
                "error",
                place(hostfile, rank, "ips"),
                "The ring backend needs an address for every host, but this one has none.",
                fix,
            )
        for position, address in enumerate(host.ips):
            where = place(hostfile, rank, f"ips[{position}]")
            if reason := _invalid_ring_address(address):
                yield Problem("ips-address", "error", where, reason, fix)
            elif _parsed(address) is None:  # unlike JACCL, MLX's ring resolves names
                yield Problem("ips-address", "warning", where, f"{address!r} is not an IP address.", fix)
            elif ipaddress.ip_address(address).is_loopback:
                if remote:
                    what = f"{address} is a loopback address: the neighbours in the ring cannot reach it."
                    yield Problem("ips-loopback", "error", where, what, fix)
            else:
                first = owners.setdefault(address, rank)
                if ssh_host(hostfile.hosts[first].ssh) != ssh_host(host.ssh):
                    what = f"{address} is also listed for host {first} ({hostfile.hosts[first].name})."
                    yield Problem("ips-twice", "error", where, what, fix)


def _invalid_ring_address(address: str) -> str:
    """Why a rank of MLX's ring cannot listen on an address, or ""."""
    parsed = _parsed(address)
    if _is_placeholder(address):
        return f"{address} is the placeholder of a template."
    if not address.strip():
        return "The address is empty."
    if ":" in address:
        return f"{address} has a colon, after which MLX's ring expects a port: write IPv4 without a port."
    if parsed and (parsed.is_unspecified or parsed.is_multicast or parsed == _BROADCAST):
        return f"{address} is not the address of a single host."
    return ""


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _is_placeholder(address: str) -> bool:
    return address.startswith("<") and address.endswith(">")
