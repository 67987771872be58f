"""Copies a folder from one node to another with rsync, along a given route, in a resumable way.

Runs rsync on the source if possible, else on this machine; rsync and openrsync support the options. Does not
depend on models or on staging; `topology/routes.py` finds the routes.
"""

import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from jaccl_kernel.core.errors import CommandFailed, NodeError, NodeUnreachable
from jaccl_kernel.core.paths import cache_dir
from jaccl_kernel.nodes import rsync, ssh
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Node, OnProgress
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.nodes.tree import Tree

Kind = Literal["same machine", "thunderbolt", "lan", "relay"]

STALL_S = 300
"""Seconds without data after which rsync fails; it sends nothing while it compares a basis file."""

# -L: a Hugging Face snapshot is a folder of links. --inplace: received data is kept even after SIGKILL, and
# the next run sends only the rest. -I: files that are not skipped are compared even if size and time are
# equal. Apple's openrsync supports all of these.
_OPTIONS = ("-L", "-I", "--inplace", f"--timeout={STALL_S}", "--exclude=.*")

# Apple silicon has instructions for AES-GCM, but not for ChaCha20, OpenSSH's default.
_FAST_CIPHER = ("-o", "Ciphers=^aes128-gcm@openssh.com")

_SSH_DEADLINE_S = 10.0

# Run on the source, so that the folder is not an rsync argument, in which a colon would separate a host.
_SEND = 'cd -- "$0" && exec rsync "$@"'


@dataclass(frozen=True)
class Route:
    """One route; `address` is the target's address, `bind` the source's, both "" to use host names."""

    kind: Kind
    address: str = ""
    bind: str = ""

    def __str__(self) -> str:
        text = {
            "same machine": "local copy",
            "thunderbolt": f"over Thunderbolt ({self.address})",
            "lan": "over the LAN",
            "relay": "relayed through this machine",
        }
        return text[self.kind]


class LoginFailed(NodeUnreachable):
    """A Mac that is the source of a copy has no key for the target, or does not know its host key."""


# What ssh on the source says in that case.
_NO_LOGIN = re.compile(r"Permission denied \(|Host key verification failed|No \S+ host key is known")


@dataclass(frozen=True)
class Endpoint:
    """A host's connection settings from our ssh config, for use on a Mac that has another config."""

    user: str
    hostname: str
    port: str
    host_key_alias: str

    @property
    def options(self) -> tuple[str, ...]:
        """The settings as ssh options."""
        return ("-o", f"HostName={self.hostname}", "-o", f"Port={self.port}", "-o", f"User={self.user}")


class RoutedNode(SshNode):
    """A Mac that ssh reaches along a specific route."""

    def __init__(self, node: SshNode, options: Sequence[str] = ()) -> None:
        super().__init__(node.host, node.name)
        self._ssh = [*node._ssh, *options]  # ssh uses the first value of an option

    def destination(self, folder: str, ssh_command: Sequence[str]) -> tuple[list[str], str]:
        """The rsync options and the rsync path of the folder, if `ssh_command` reaches this Mac."""
        return rsync.ssh_options(ssh_command, folder, create=True), rsync.remote_path(self.host)

    async def endpoint(self) -> Endpoint:
        """The connection settings for this Mac, as our ssh resolves them."""
        query = [*self._ssh, "-G", "--", self.host]
        done = await LocalNode(self.where).run(query, deadline=_SSH_DEADLINE_S)
        settings = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
        hostname, port = settings.get("hostname", self.host), settings.get("port", "22")
        key_name = hostname if port == "22" else f"[{hostname}]:{port}"
        return Endpoint(settings.get("user", ""), hostname, port, settings.get("hostkeyalias", key_name))


async def push(
    source: Node,
    folder: str,
    target: Node,
    dest: str,
    route: Route,
    *,
    files: Tree,
    skip: Collection[str] = (),
    deadline: float,
    on_progress: OnProgress | None = None,
) -> None:
    """Copy the source's `folder` to the target's `dest`, except hidden files; resume an unfinished copy.

    Args:
        source, target: two nodes, or the same node twice.
        folder, dest: absolute paths on these nodes.
        route: the route to use.
        files: the files in the folder.
        skip: names of files that are already complete on the target.
        deadline: seconds.
        on_progress: called with the progress, without skipped files.

    Raises:
        NodeUnreachable: the connection along this route failed or broke.
        CommandFailed: rsync failed, for example because of a full disk or a removed file.
        CommandTimeout: the copy did not end before the deadline.
    """
    options = [*_OPTIONS, *(f"--exclude=/{_literal(name)}" for name in sorted(skip))]
    if route.kind == "relay":
        await _relay(
            source,
            folder,
            target,
            dest,
            [name for name in files.files if name not in skip],
            deadline,
            on_progress,
        )
    elif isinstance(source, LocalNode) and isinstance(target, LocalNode):
        await target.copy_to(Path(folder), dest, deadline=deadline, on_progress=on_progress, options=options)
    elif isinstance(source, LocalNode) and isinstance(target, SshNode):
        routed = await _routed(target, route)
        await routed.copy_to(Path(folder), dest, deadline=deadline, on_progress=on_progress, options=options)
    elif isinstance(source, SshNode) and isinstance(target, LocalNode):
        # fetch the files, since the source may not be able to connect to this machine
        routed = await _routed(source, Route(route.kind, route.bind, route.address))
        await routed.copy_from(
            folder, Path(dest), deadline=deadline, on_progress=on_progress, options=options
        )
    else:
        to = [f"{dest}/"] if source is target else await _remote_destination(target, dest, route)
        await _send(source, folder, target, [*options, *to[:-1], "./", to[-1]], deadline, on_progress)


async def _routed(node: SshNode, route: Route) -> RoutedNode:
    if route.kind != "thunderbolt":
        return RoutedNode(node, _FAST_CIPHER)
    end = await RoutedNode(node).endpoint()
    return RoutedNode(node, (*_route_options(route, end), *_FAST_CIPHER))


def _route_options(route: Route, end: Endpoint) -> tuple[str, ...]:
    """ssh options for a route along a cable; ssh still checks the host key of the Mac's name."""
    bind = ("-o", f"BindAddress={route.bind}") if route.bind else ()
    names = ("-o", f"HostName={route.address}", "-o", f"HostKeyAlias={end.host_key_alias}")
    return (*names, *bind, "-o", "ControlPath=none")  # a shared connection may run over the LAN


async def _remote_destination(target: Node, dest: str, route: Route) -> list[str]:
    """The rsync options and destination for a source that connects to the target itself."""
    assert isinstance(target, SshNode)
    routed = RoutedNode(target)
    end = await routed.endpoint()
    along = _route_options(route, end) if route.kind == "thunderbolt" else ()
    options, path = routed.destination(dest, ssh.command((*along, *end.options, *_FAST_CIPHER)))
    return [*options, path]


async def _send(
    source: Node,
    folder: str,
    target: Node,
    args: Sequence[str],
    deadline: float,
    on_progress: OnProgress | None,
) -> None:
    """Run rsync on the source; an error names the connection or rsync as the cause."""
    reader = rsync.ProgressReader()

    def on_line(line: str) -> None:
        if on_progress and (progress := reader.feed(line)):
            on_progress(progress)

    argv = ["/bin/sh", "-c", _SEND, folder, *rsync.command(args, progress=True)[1:]]
    done = await source.run(argv, deadline=deadline, check=False, on_line=on_line)
    if not done.returncode:
        return
    where = f"{source.name} → {target.name}"
    host = getattr(target, "host", target.name)
    if diagnosis := ssh.explain(done.stderr, host):
        fix = f"On {source.name}: {diagnosis.fix}"
        error = LoginFailed if _NO_LOGIN.search(done.stderr) else NodeUnreachable
        raise error(f"{source.name} cannot connect to {target.name}: {diagnosis.what}", where=where, fix=fix)
    if why := ssh.lost(done.stderr):
        raise NodeUnreachable(f"the connection broke: {why}", where=where)
    why, fix = rsync.explain(done.stderr)
    what = f"rsync failed with status {done.returncode}: {why}"
    raise CommandFailed(what, where=where, fix=fix, returncode=done.returncode, output=why)


async def _relay(
    source: Node,
    folder: str,
    target: Node,
    dest: str,
    names: Sequence[str],
    deadline: float,
    on_progress: OnProgress | None,
) -> None:
    """Copy file by file through a temporary folder on this machine, which has one file at a time."""
    before = 0
    try:
        root = cache_dir() / "relay"
        root.mkdir(parents=True, exist_ok=True)
        spool_folder = tempfile.TemporaryDirectory(dir=root)
    except OSError as error:
        raise NodeError(
            f"cannot create the relay folder: {error.strerror}", where=str(cache_dir())
        ) from error
    with spool_folder as spool:
        for name in names:
            path = PurePosixPath(name)
            only = [f"--include=/{_literal(path.name)}", "--exclude=*"]
            local = Path(spool) / "file"
            parent = str(PurePosixPath(folder) / path.parent)
            try:
                await source.copy_from(parent, local, deadline=deadline, options=[*_OPTIONS[:-1], *only])
            except CommandFailed as error:
                if not rsync.FULL.search(error.what):
                    raise
                what = f"the disk of this machine is full, which relays {name}"
                fix = "Free disk space, or set JACCL_CACHE to a folder on another volume; then sync again."
                raise NodeError(what, where=str(root), fix=fix) from error
            one = local / path.name

            def report(progress: rsync.Progress, before: int = before) -> None:
                if on_progress:
                    on_progress(rsync.Progress(before + progress.sent, progress.rate, None, progress.files))

            await target.copy_to(
                one,
                str(PurePosixPath(dest) / path.parent),
                deadline=deadline,
                on_progress=report,
                options=_OPTIONS[:-1],
            )
            before += one.stat().st_size
            one.unlink()


def _literal(name: str) -> str:
    """A name as an rsync pattern that matches only it; a backslash is special only next to a wildcard."""
    if not any(letter in name for letter in "*?["):
        return name
    return "".join(f"\\{letter}" if letter in "\\*?[" else letter for letter in name)
