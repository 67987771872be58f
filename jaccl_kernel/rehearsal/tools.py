"""The output of a simulated Mac's commands, in macOS's formats, from the cluster's description. Pure.

`outputs` has the simulated commands by their complete command lines. Commands that run for real (df, date,
rsync, ssh) are only in `results`. `network.py` has the network commands.
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from jaccl_kernel.rehearsal import network
from jaccl_kernel.rehearsal.macs import ClusterSpec, MacSpec
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.tools.assemble import assemble
from jaccl_kernel.topology.tools.commands import CommandResult, commands

_HUNG = CommandResult(returncode=None, timed_out=True)
_ACTIVE, _DOWN = "PORT_ACTIVE (4)", "PORT_DOWN (1)"
_VENDOR = "Apple Inc."


def outputs(spec: ClusterSpec, node: int) -> dict[str, CommandResult]:
    """The result of each simulated command line of one Mac.

    Args:
        spec: the cluster.
        node: the index of the Mac. A Mac that is asleep or rejects ssh still has output; only the connection
            fails.
    """
    mac = spec.macs[node]
    answers = {
        line: CommandResult(text) if code == 0 else CommandResult(stderr=text, returncode=code)
        for line, text, code in _answers(spec, node)
    }
    return answers | {line: _HUNG for line in answers if line.partition(" ")[0] in mac.hangs}


def results(
    spec: ClusterSpec, node: int, *, python: str = "python3", now: float = 1_800_000_000.0
) -> dict[str, CommandResult]:
    """The results of a scan of one Mac, by the ids of `commands.COMMANDS`; empty if it is unreachable."""
    mac = spec.macs[node]
    if mac.reachable != "yes":
        return {}
    real = {
        "df": CommandResult(_DF),
        "date": CommandResult(f"{now:.0f}\n", at=now + 0.5),
        "rsync": CommandResult("openrsync: protocol version 29\nrsync version 2.6.9 compatible\n"),
        "ssh": CommandResult(stderr="OpenSSH_10.0p2, LibreSSL 3.3.6\n"),
        "python": CommandResult(python_answer(mac, python)),
    }
    faked = outputs(spec, node)
    found = {}
    for command in commands(python):
        answer = faked.get(shlex.join(command.argv)) or real[command.id]
        found[command.id] = _HUNG if command.argv[0] in mac.hangs else answer
    return found


def python_answer(mac: MacSpec, executable: str) -> str:
    """The output of the Python probe on a Mac."""
    packages = {
        "mlx": mac.mlx,
        "mlx-lm": mac.mlx_lm,
        "transformers": mac.transformers,
        "jaccl-kernel": mac.jaccl_kernel,
    }
    return json.dumps({"executable": executable, "version": mac.python, "packages": packages}) + "\n"


def facts(spec: ClusterSpec) -> list[NodeFacts]:
    """The facts from a scan of the whole cluster."""
    return [
        assemble(mac.name, mac.name, results(spec, node), error=ssh_error(mac))
        for node, mac in enumerate(spec.macs)
    ]


def ssh_error(mac: MacSpec) -> str | None:
    """ssh's error message for an unreachable Mac, or None."""
    return {
        "yes": None,
        "ssh-fails": f"{mac.name}: Permission denied (publickey,password,keyboard-interactive).",
        "asleep": f"ssh: connect to host {mac.name} port 22: Operation timed out",
    }[mac.reachable]


def _answers(spec: ClusterSpec, node: int) -> Iterator[tuple[str, str, int]]:
    """All command lines with their output and exit status."""
    mac = spec.macs[node]
    yield "hostname", f"{mac.name}.local\n", 0
    for option, text in {"": "Darwin", " -s": "Darwin", " -m": "arm64", " -p": "arm"}.items():
        yield f"uname{option}", f"{text}\n", 0
    yield (
        "sw_vers",
        f"ProductName:\t\tmacOS\nProductVersion:\t\t{mac.macos}\nBuildVersion:\t\t{mac.build}\n",
        0,
    )
    yield "sw_vers -productVersion", f"{mac.macos}\n", 0
    yield "sw_vers -buildVersion", f"{mac.build}\n", 0
    yield from _sysctl(mac)
    yield "rdma_ctl status", "enabled\n" if mac.rdma else "disabled\n", 0
    for verb in ("enable", "disable"):
        yield f"rdma_ctl {verb}", f"rdma_ctl: {verb} is only possible in macOS Recovery\n", 1
    yield "ibv_devices", _ibv_devices(mac, node), 0
    none = "No IB devices found\n"
    yield "ibv_devinfo", _ibv_devinfo(spec, node, verbose=False) or none, 0 if mac.has_rdma else 255
    yield "ibv_devinfo -v", _ibv_devinfo(spec, node, verbose=True) or none, 0 if mac.has_rdma else 255
    yield "system_profiler SPThunderboltDataType -json", _system_profiler(spec, node), 0
    yield from network.answers(spec, node)
    yield "pmset -g", _PMSET, 0
    yield "pmset -g batt", "Now drawing from 'AC Power'\n", 0
    yield "pmset -g ac", "No adapter attached.\n", 0
    yield "pmset -g assertions", _ASSERTIONS, 0


def _sysctl(mac: MacSpec) -> Iterator[tuple[str, str, int]]:
    values = {
        "hw.memsize": str(mac.memory_gb * 2**30),
        "hw.model": mac.model,
        "machdep.cpu.brand_string": mac.chip,
        "iogpu.wired_limit_mb": str(mac.wired_limit_mb),
    }
    yield f"sysctl {' '.join(values)}", "".join(f"{key}: {value}\n" for key, value in values.items()), 0
    for key, value in values.items():
        yield f"sysctl {key}", f"{key}: {value}\n", 0
        yield f"sysctl -n {key}", f"{value}\n", 0


def _is_active(spec: ClusterSpec, node: int, number: int) -> bool:
    """Whether a port is active: only if both Macs of its cable are awake and have RDMA on."""
    cable = spec.cables_of(node).get(number)
    return (
        cable is not None
        and number not in spec.macs[node].down
        and cable.unseen_by is None
        and all(spec.macs[node].has_rdma and spec.macs[node].reachable != "asleep" for node in cable.nodes)
    )


def _guid(node: int, number: int) -> str:
    return f"{0x80 + number:02x}96a9d9ed{node + 1:02x}ac05"


def _ibv_devices(mac: MacSpec, node: int) -> str:
    rows = [(f"rdma_{interface}", _guid(node, number)) for number, interface in _unsorted(mac)]
    lines = [("device", "   node GUID"), ("------", "----------------"), *(rows if mac.has_rdma else [])]
    return "".join(f"    {name:<16}\t{guid}\n" for name, guid in lines)


def _unsorted(mac: MacSpec) -> list[tuple[int, str]]:
    """The ports in the unsorted order of the tools."""
    ports = sorted(mac.interfaces.items())
    return [*ports[1:], *ports[:1]]


def _ibv_devinfo(spec: ClusterSpec, node: int, *, verbose: bool) -> str:
    mac = spec.macs[node]
    if not mac.has_rdma:
        return ""
    blocks = []
    for number, interface in _unsorted(mac):
        guid = _guid(node, number)
        lines = [
            f"hca_id:\trdma_{interface}",
            "\ttransport:\t\t\tThunderbolt (100)",
            f"\tnode_guid:\t\t\t{':'.join(guid[i : i + 4] for i in range(0, 16, 4))}",
            "\tphys_port_cnt:\t\t\t1",
            "\t\tport:\t1",
            f"\t\t\tstate:\t\t\t{_ACTIVE if _is_active(spec, node, number) else _DOWN}",
            "\t\t\tmax_mtu:\t\t4096 (5)",
            "\t\t\tactive_mtu:\t\t4096 (5)",
            "\t\t\tlink_layer:\t\tThunderbolt",
        ]
        gids = network.gids(spec, node, number)
        blocks.append(lines + [f"\t\t\tGID[{i}]:\t\t{gid}" for i, gid in enumerate(gids) if verbose])
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def _uuid(node: int, number: int) -> str:
    return f"{node + 1:08X}-0000-4000-8000-{number:012X}"


def _system_profiler(spec: ClusterSpec, node: int) -> str:
    mac = spec.macs[node]
    buses = [_bus(spec, node, number) for number in sorted(mac.interfaces)]
    return json.dumps({"SPThunderboltDataType": buses}, indent=2) + "\n"


def _bus(spec: ClusterSpec, node: int, number: int) -> dict[str, Any]:
    mac, cable = spec.macs[node], spec.cables_of(node).get(number)
    items: list[dict[str, Any]] = []
    speed = "Up to 120 Gb/s" if mac.thunderbolt == 5 else "Up to 40 Gb/s"
    if cable is not None and cable.unseen_by != node:
        items, speed = [_peer(spec, cable.other_end((node, number)))], f"{cable.gbps} Gb/s"
        if cable.hub and cable.a == (node, number):
            items = [{"_name": cable.hub, "vendor_name_key": "iVANKY", "_items": items}]
    elif number in mac.devices:
        items, speed = [{"_name": mac.devices[number], "vendor_name_key": "CalDigit, Inc."}], "40 Gb/s"
    status = "receptacle_connected" if items else "receptacle_no_devices_connected"
    return {
        **({"_items": items} if items else {}),
        "_name": f"thunderboltusb4_bus_{number - 1}",
        "device_name_key": mac.product,
        "domain_uuid_key": _uuid(node, number),
        "receptacle_1_tag": {
            "current_speed_key": speed,
            "link_status_key": "0x2" if items else "0x100",
            "receptacle_id_key": str(number),
            "receptacle_status_key": status,
        },
        "route_string_key": "0",
        "switch_uid_key": f"0x{_guid(node, number).upper()}",
        "vendor_name_key": _VENDOR,
    }


def _peer(spec: ClusterSpec, end: tuple[int, int]) -> dict[str, Any]:
    mac = spec.macs[end[0]]
    services = [{"_name": "service_ip", "protocol_id_key": 1}]
    if mac.has_rdma:
        services.append({"_name": "unknown_xd_service", "protocol_id_key": 64087})
    return {
        "_name": mac.product,
        "device_name_key": mac.model,
        "domain_uuid_key": _uuid(*end),
        "services_title": services,
        "vendor_name_key": _VENDOR,
    }


_DF = """\
Filesystem     1024-blocks       Used  Available Capacity  Mounted on
/dev/disk3s5    3864788992 1200000000 2600000000    32%    /System/Volumes/Data
"""

_PMSET = """\
System-wide power settings:
Currently in use:
 standby              0
 Sleep On Power Button 1
 womp                 1
 disksleep            10
 sleep                0 (sleep prevented by caffeinate)
 displaysleep         10
 lowpowermode         0
"""

_ASSERTIONS = """\
2026-11-20 10:00:00 +0100
Assertion status system-wide:
   BackgroundTask                 0
   PreventUserIdleDisplaySleep    0
   PreventSystemSleep             1
   PreventUserIdleSystemSleep     1
Listed by owning process:
   pid 417(caffeinate): [0x000238a4000183f5] 00:10:02 PreventSystemSleep named: "caffeinate command-line tool"
"""
