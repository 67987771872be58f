"""Parses the output of macOS's tools for network, power, disk and versions into facts.

One pure function per tool, no I/O. As in `rdma.py`, unreadable output gives None and no input raises.
"""

import contextlib
import json
import re
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Literal

from jaccl_kernel.topology.facts import Address, InterfaceFacts, PowerFacts, PythonFacts, RsyncFacts
from jaccl_kernel.topology.tools._text import integer, ipv4, is_mac, lines, word


def ifconfig(text: str) -> tuple[InterfaceFacts, ...] | None:
    """`ifconfig -a`, or of one interface: addresses, link status and bridge members."""
    found: dict[str, InterfaceFacts] = {}
    name = ""
    for line in lines(text):
        if match := re.match(r"([\w.-]+):\s+flags=", line, re.ASCII):
            name = match[1]
            found[name] = InterfaceFacts(name)
        elif name:
            found[name] = _with_ifconfig(found[name], line)
    for bridge in list(found.values()):
        for member in bridge.members:
            if member in found:
                found[member] = replace(found[member], bridge=bridge.name)
    return tuple(found.values()) or None


def _with_ifconfig(interface: InterfaceFacts, line: str) -> InterfaceFacts:
    key, _, rest = line.replace("\t", " ").partition(" ")
    words = rest.split()
    value = words[0] if words else ""
    if key == "inet" and (ip := ipv4(value)):
        mask = words[words.index("netmask") + 1] if "netmask" in words[:-1] else ""
        return replace(interface, ipv4=(*interface.ipv4, Address(ip, _prefix(mask))))
    if key == "inet6" and value.lower().startswith("fe80:") and interface.ipv6_link_local is None:
        return replace(interface, ipv6_link_local=value.partition("%")[0])
    if key == "ether" and is_mac(value):
        return replace(interface, mac=value)
    if key == "status:" and value in ("active", "inactive"):
        return replace(interface, active=value == "active")
    if key == "member:" and value:
        return replace(interface, members=(*interface.members, value))
    return interface


def getifaddr(text: str) -> str | None:
    """`ipconfig getifaddr enX`: the address, or None."""
    return next((ip for line in lines(text) if (ip := ipv4(line))), None)


def sw_vers(text: str) -> tuple[str | None, str | None]:
    """`sw_vers`: macOS's version and build."""
    values = settings(text)
    return values.get("ProductVersion"), values.get("BuildVersion")


def settings(text: str) -> dict[str, str]:
    """Lines of `key: value` or `key = value`, as sw_vers, sysctl and `pmset -g ac` print them."""
    pairs = (re.match(r"([^\s:=]+)\s*[:=]\s*(\S.*)", line) for line in lines(text))
    return {match[1]: match[2].strip() for match in pairs if match}


def count(text: str | None) -> int | None:
    """An integer that is the entire text, such as sysctl's `hw.memsize`."""
    return integer((text or "").strip())


def pmset(text: str) -> PowerFacts:
    """`pmset -g`: the active settings."""
    found = dict(
        re.findall(r"^\s*(sleep|lowpowermode|powermode)\s+(\d{1,6})\b", text, re.MULTILINE | re.ASCII)
    )
    # Newer macOS may write powermode (0 automatic, 1 low, 2 high) instead of lowpowermode.
    low = found.get("lowpowermode", found.get("powermode"))
    return PowerFacts(
        low_power_mode=None if low is None else low == "1",
        sleep_minutes=int(found["sleep"]) if "sleep" in found else None,
    )


def pmset_batt(text: str) -> PowerFacts:
    """`pmset -g batt`: the power source and the charge."""
    source = re.search(r"'(AC|Battery|UPS) Power'", text)
    percent = re.search(r"\b(\d{1,3})%", text, re.ASCII)
    return PowerFacts(
        source=None if source is None else "ac" if source[1] == "AC" else "battery",
        battery_percent=int(percent[1]) if percent else None,
    )


def pmset_ac(text: str) -> PowerFacts:
    """`pmset -g ac`: the adapter's watts; a Mac with a built-in power supply reports none."""
    return PowerFacts(adapter_watts=integer(settings(text).get("Wattage", "").rstrip("W ")))


def pmset_assertions(text: str) -> PowerFacts:
    """`pmset -g assertions`: whether a process prevents sleep, and whether caffeinate does."""
    counts = re.findall(
        r"^\s*(PreventSystemSleep|PreventUserIdleSystemSleep)\s+(\d{1,6})\s*$", text, re.MULTILINE | re.ASCII
    )
    if not counts:
        return PowerFacts()
    caffeinated = re.search(r"pid \d+\s*\(caffeinate\)", text) is not None
    return PowerFacts(sleep_prevented=any(int(held) for _, held in counts), caffeinated=caffeinated)


def rsync_flavour(text: str) -> RsyncFacts | None:
    """`rsync --version`: rsync, or Apple's openrsync (which also prints "2.6.9 compatible")."""
    protocol = re.search(r"protocol version (\d{1,4})", text, re.ASCII)
    version = re.search(r"\brsync\s+version v?(\d[\w.]*)", text, re.ASCII)
    if not protocol and not version:
        return None
    flavour: Literal["rsync", "openrsync"] = "openrsync" if "openrsync" in text.lower() else "rsync"
    return RsyncFacts(flavour, version[1] if version else None, int(protocol[1]) if protocol else None)


def ssh_version(text: str) -> str | None:
    """`ssh -V`: the version, such as `OpenSSH_9.8p1`."""
    match = re.search(r"OpenSSH_[\w.]+", text, re.ASCII)
    return match[0] if match else None


def clock(text: str) -> float | None:
    """`date +%s`: seconds since 1970."""
    seconds = count(text)
    return None if seconds is None else float(seconds)


def python_versions(text: str) -> PythonFacts | None:
    """The JSON of our Python probe (see `commands.py`); other output around it is ignored."""
    for line in reversed(list(lines(text))):
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(line)
            if isinstance(data, dict) and isinstance(packages := data.get("packages"), dict):
                return PythonFacts(
                    executable=word(data.get("executable")),
                    version=word(data.get("version")),
                    mlx=word(packages.get("mlx")),
                    mlx_lm=word(packages.get("mlx-lm")),
                    transformers=word(packages.get("transformers")),
                    jaccl_kernel=word(packages.get("jaccl-kernel")),
                )
    return None


def first_line(text: str) -> str | None:
    """The first non-blank line, as of `hostname` or `uname -m`."""
    return next((line for line in lines(text) if line), None)


def _prefix(mask: str) -> int | None:
    """`0xffffff00` or `255.255.255.0` as 24; None for a non-contiguous mask."""
    if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", mask):
        bits = int(mask, 16)
    elif ipv4(mask):
        bits = int(IPv4Address(mask))
    else:
        return None
    prefix = bits.bit_count()
    return prefix if bits == (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF else None
