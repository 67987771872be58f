"""The effect of commands that change a simulated Mac's network on its description. Pure.

Covers ifconfig, route, networksetup and sysctl as far as the set-up of Thunderbolt ports and its undo need
them. Errors have the tools' own messages.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.rehearsal.macs import ClusterSpec, MacSpec
from jaccl_kernel.rehearsal.network import BRIDGE, late_addresses, service

_WIRED_LIMIT = "iogpu.wired_limit_mb="


def after(spec: ClusterSpec, node: int, lines: Iterable[Sequence[str]]) -> ClusterSpec:
    """Apply these command lines on one Mac; those that are no longer valid are skipped.

    Args:
        spec: the initial cluster.
        node: the index of the Mac.
        lines: commands with arguments, the oldest first.
    """
    for line in lines:
        try:
            spec = change(spec, node, line)
        except InputError:  # the cables have changed since
            continue
    return spec


def change(spec: ClusterSpec, node: int, line: Sequence[str]) -> ClusterSpec:
    """Apply one command line, run as root on one Mac.

    Raises:
        InputError: the tool rejects it; `what` is the tool's error message.
    """
    tool, *words = line
    if tool not in TOOLS:
        raise InputError(f"{tool}: not supported in a rehearsal")
    changes = TOOLS[tool](spec, node, words)
    return spec.with_mac(node, **changes)


def _ifconfig(spec: ClusterSpec, node: int, words: Sequence[str]) -> dict[str, object]:
    mac = spec.macs[node]
    interface, *rest = words or [""]
    if interface == BRIDGE:
        return _bridge(mac, rest)
    number = mac.port_of(interface)
    if number is None:
        if interface in ("lo0", "en0", "en1"):
            raise InputError(f"ifconfig: {interface} cannot be changed in a rehearsal")
        raise InputError(f"ifconfig: interface {interface} does not exist")
    if rest[:1] == ["inet6"]:
        return _inet6(mac, node, number, rest[1:])
    down, current, address, mask, verb = mac.down, spec.ipv4(node, number), "", "", "set"
    remaining = iter([word for word in rest if word != "inet"])
    for word in remaining:
        if word in ("up", "down"):
            down = down - {number} if word == "up" else down | {number}
        elif word == "netmask":
            mask = next(remaining, "")
        elif word in ("alias", "add"):
            verb = "add"
        elif word in ("-alias", "delete", "remove"):
            verb = "delete"
        elif not address:
            address = word
        else:
            raise InputError(f"ifconfig: {word}: bad value")
    if address or verb == "delete":
        current = _addresses(current, address, mask, verb)
        return {"down": down, "ipv4": {**mac.ipv4, number: current}}
    return {"down": down}


def _addresses(
    current: tuple[IPv4Interface, ...], address: str, mask: str, verb: str
) -> tuple[IPv4Interface, ...]:
    """A port's addresses after one is set (replacing the first), added or deleted."""
    named = _interface("ifconfig", address, mask) if address else next(iter(current), None)
    others = tuple(one for one in current if named is None or one.ip != named.ip)
    if verb == "delete":
        if named is None or len(others) == len(current):
            raise InputError("ifconfig: ioctl (SIOCDIFADDR): Can't assign requested address")
        return others
    assert named is not None
    return (*others, named) if verb == "add" else (named, *(one for one in current[1:] if one.ip != named.ip))


def _interface(tool: str, address: str, mask: str) -> IPv4Interface:
    try:
        if mask.startswith("0x"):
            mask = str(IPv4Address(int(mask, 16)))
        # without a mask, ifconfig uses the address class, which is B for link-local addresses
        return IPv4Interface(address if "/" in address else f"{address}/{mask or 16}")
    except ValueError:
        raise InputError(f"{tool}: {address}: bad value") from None


def _inet6(mac: MacSpec, node: int, number: int, words: Sequence[str]) -> dict[str, object]:
    """The only supported IPv6 change: delete the address that occupies GID index 1."""
    address, verb = words if len(words) == 2 else ("", "")
    if verb in ("delete", "-alias", "remove") and address in late_addresses(mac, node, number):
        return {"late_gid": mac.late_gid - {number}}
    raise InputError("ifconfig: ioctl (SIOCDIFADDR): Can't assign requested address")


def _bridge(mac: MacSpec, words: Sequence[str]) -> dict[str, object]:
    state, members, without_ipv4 = mac.bridge_state, mac.bridged, mac.no_ipv4
    remaining = iter(words)
    for word in remaining:
        if (state == "none") != (word == "create"):
            problem = "does not exist" if state == "none" else "already exists"
            raise InputError(f"ifconfig: interface {BRIDGE} {problem}")
        if word in ("addm", "deletem"):
            interface = next(remaining, "")
            number = mac.port_of(interface)
            if number is None or (number in members) == (word == "addm"):
                reason = "Device busy" if number in members else "No such file or directory"
                raise InputError(f"ifconfig: BRDG{'ADD' if word == 'addm' else 'DEL'} {interface}: {reason}")
            members = members | {number} if word == "addm" else members - {number}
            without_ipv4 = without_ipv4 | {
                number
            }  # macOS assigns no address to a port removed from the bridge
        elif word in ("up", "down"):
            state = "up" if word == "up" else "down"
        elif word in ("create", "destroy"):
            state, members = ("up" if word == "create" else "none"), frozenset()
        else:
            raise InputError(f"ifconfig: {word}: bad value")
    return {"bridge": state, "bridged": members, "no_ipv4": without_ipv4}


def _route(spec: ClusterSpec, node: int, words: Sequence[str]) -> dict[str, object]:
    mac = spec.macs[node]
    plain = [word for word in words if word not in ("-n", "-q", "-host", "-net", "-inet", "-interface")]
    if len(plain) < 2 or plain[0] not in ("add", "change", "delete"):
        raise InputError("usage: route [-n] add|change|delete DESTINATION -interface INTERFACE")
    verb, destination, *interface = plain
    if verb == "delete":
        if destination not in mac.routes:
            raise InputError(f"route: writing to routing socket: not in table\ndelete host {destination}")
        return {"routes": {key: value for key, value in mac.routes.items() if key != destination}}
    if len(interface) != 1 or mac.port_of(interface[0]) is None:
        raise InputError(f"route: bad interface name: {' '.join(interface)}")
    if verb == "add" and destination in mac.routes:
        raise InputError(f"route: writing to routing socket: File exists\nadd host {destination}")
    return {"routes": {**mac.routes, destination: interface[0]}}


def _networksetup(spec: ClusterSpec, node: int, words: Sequence[str]) -> dict[str, object]:
    mac = spec.macs[node]
    verb, name, *rest = [*words, "", ""][: max(2, len(words))]
    number = next((number for number in mac.interfaces if service(number) == name), None)
    if number is None:
        what = f"{name} is not a recognized network service.\n** Error: The parameters were not valid."
        raise InputError(what)
    if verb == "-setmanual" and len(rest) >= 2:
        return {"ipv4": {**mac.ipv4, number: (_interface("networksetup", rest[0], rest[1]),)}}
    if verb == "-setv4off":
        return {"ipv4": {**mac.ipv4, number: ()}}
    if verb == "-setdhcp":
        others = {key: value for key, value in mac.ipv4.items() if key != number}
        return {"ipv4": others, "no_ipv4": mac.no_ipv4 - {number}}
    raise InputError(f"networksetup: not supported in a rehearsal: {' '.join(words)}")


def _sysctl(_spec: ClusterSpec, _node: int, words: Sequence[str]) -> dict[str, object]:
    plain = [word for word in words if word != "-w"]
    if len(plain) == 1 and plain[0].startswith(_WIRED_LIMIT):
        limit = plain[0].removeprefix(_WIRED_LIMIT)
        if limit.isascii() and limit.isdigit():
            return {"wired_limit_mb": int(limit)}
    raise InputError(f"sysctl: unknown oid '{' '.join(plain)}'")


TOOLS: Mapping[str, Callable[[ClusterSpec, int, Sequence[str]], dict[str, object]]] = {
    "ifconfig": _ifconfig,
    "route": _route,
    "networksetup": _networksetup,
    "sysctl": _sysctl,
}
"""The commands that can change a Mac; each returns the changed attributes of `MacSpec`."""
