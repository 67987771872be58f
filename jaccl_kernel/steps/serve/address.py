"""The address at which this machine reaches a server: one that resolves here, never an ssh alias."""

import asyncio

from jaccl_kernel.core.errors import NodeError
from jaccl_kernel.core.options import ServeOptions, is_loopback
from jaccl_kernel.hostfile.hostfile import LOCAL, Host, ssh_host
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.nodes.transfer import RoutedNode


def is_here(ssh: str) -> bool:
    """Whether this ssh name means this machine."""
    return ssh == LOCAL or ssh_host(ssh) == "localhost"


async def address_of(host: Host) -> str:
    """What ssh connects to for this host, or, if that does not resolve here, its first IP address."""
    if is_here(host.ssh):
        return LOCAL
    try:
        name = (await RoutedNode(SshNode(host.ssh)).endpoint()).hostname
        await asyncio.get_running_loop().getaddrinfo(name, None)
    except (NodeError, OSError, UnicodeError):
        return host.ips[0] if host.ips else ssh_host(host.ssh)
    return name


def url_of(options: ServeOptions, address: str = LOCAL) -> str:
    """The server's URL from this machine, without /v1; `address` is that of rank 0's host."""
    host = options.host
    if host in ("0.0.0.0", "::"):
        host = "::1" if host == "::" and address == LOCAL else address
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{options.port}"


def only_there(options: ServeOptions, first: str) -> str:
    """Why programs on this machine cannot reach the server on the host with this ssh name; "" if they can."""
    if is_here(first) or not is_loopback(options.host):
        return ""
    name, port = ssh_host(first), options.port
    return (
        f"{options.host} is reachable only from {name} itself: serve with --host 0.0.0.0 (generates an API "
        f"key), or use a tunnel: ssh -N -L {port}:{options.host}:{port} {first}"
    )
