"""A folder goes from one node to another by rsync, along a given route, so that it can be resumed.

Runs rsync on the source where that can be, else here; both flavours take the options. Knows no models, no
hidden siblings, and not which route is best (`routes.py`).
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaccl_kernel.cluster import rsync, ssh
from jaccl_kernel.cluster.routes import Route
from jaccl_kernel.cluster.shell import LocalNode, Node, OnProgress, SshNode
from jaccl_kernel.cluster.tree import Tree
from jaccl_kernel.errors import CommandFailed, NodeError, NodeUnreachable
from jaccl_kernel.paths import cache_dir

STALL_S = 300
"""Seconds without a byte after which rsync gives up; it is silent for a while when it compares a basis."""

# -L: a Hugging Face snapshot is a folder of links. --inplace: what arrived is kept however rsync ends, by
# SIGKILL too, and a second run sends only what is missing. -I: what we do not skip is compared, even if its
# size and second are right. Apple's openrsync takes all of these.
_OPTIONS = ("-L", "-I", "--inplace", f"--timeout={STALL_S}", "--exclude=.*")

# Apple silicon has instructions for AES-GCM, and none for ChaCha20, OpenSSH's first choice.
_FAST_CIPHER = ("-o", "Ciphers=^aes128-gcm@openssh.com")

_SSH_DEADLINE_S = 10.0

# Run on the source: so the folder's name is no argument of rsync's, where a colon would mean a host.
_SEND = 'cd -- "$0" && exec rsync "$@"'


@dataclass(frozen=True)
class Endpoint:
    """What our ssh config makes of a host's name; another Mac has another config, and must be told."""

    user: str
    hostname: str
    port: str
    known_as: str

    @property
    def options(self) -> tuple[str, ...]:
        """As ssh options."""
        return ("-o", f"HostName={self.hostname}", "-o", f"Port={self.port}", "-o", f"User={self.user}")


class Hop(SshNode):
    """A Mac that ssh reaches, along one route of possibly several."""

    def __init__(self, node: SshNode, options: Sequence[str] = ()) -> None:
        super().__init__(node.host, node.name)
        self._ssh = [
            *node._ssh,
            *options,
        ]  # ssh takes an option's first value, the command line's before the file's

    def into(self, folder: str, ssh_command: Sequence[str]) -> tuple[list[str], str]:
        """rsync's options, and its name for the folder, when `ssh_command` reaches this Mac."""
        return rsync.over_ssh(ssh_command, folder, make=True), rsync.far_place(self.host)

    async def endpoint(self) -> Endpoint:
        """What its name stands for, as our own ssh resolves it."""
        asked = [*self._ssh, "-G", "--", self.host]
        done = await LocalNode(self.where).run(asked, deadline=_SSH_DEADLINE_S)
        told = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
        hostname, port = told.get("hostname", self.host), told.get("port", "22")
        known_as = hostname if port == "22" else f"[{hostname}]:{port}"
        return Endpoint(told.get("user", ""), hostname, port, told.get("hostkeyalias", known_as))


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
    """Make the target's `dest` hold the source's `folder`, hidden files aside; go on with what was begun.

    Args:
        source, target: two nodes, or twice the same.
        folder, dest: absolute paths there.
        route: the way to take.
        files: what the folder holds.
        skip: names that are in place at the target already.
        deadline: seconds.
        on_progress: told how far it is; what is skipped does not count.

    Raises:
        NodeUnreachable: there is no way along this route, or it broke.
        CommandFailed: rsync failed: a full disk, a file that went away, …
        CommandTimeout: it did not end in time.
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
        hop = await _hop(target, route)
        await hop.copy_to(Path(folder), dest, deadline=deadline, on_progress=on_progress, options=options)
    elif isinstance(source, SshNode) and isinstance(target, LocalNode):
        # the source may have no way in here: we fetch
        hop = await _hop(source, Route(route.kind, route.bind, route.address))
        await hop.copy_from(folder, Path(dest), deadline=deadline, on_progress=on_progress, options=options)
    else:
        way = [f"{dest}/"] if source is target else await _from_there(target, dest, route)
        await _send(source, folder, target, [*options, *way[:-1], "./", way[-1]], deadline, on_progress)


async def _hop(node: SshNode, route: Route) -> Hop:
    if route.kind != "thunderbolt":
        return Hop(node, _FAST_CIPHER)
    end = await Hop(node).endpoint()
    return Hop(node, (*_along(route, end), *_FAST_CIPHER))


def _along(route: Route, end: Endpoint) -> tuple[str, ...]:
    """ssh options that lead along the cable; the Mac is still known by the host key of its name."""
    bind = ("-o", f"BindAddress={route.bind}") if route.bind else ()
    names = ("-o", f"HostName={route.address}", "-o", f"HostKeyAlias={end.known_as}")
    return (*names, *bind, "-o", "ControlPath=none")  # a shared connection may run over the LAN


async def _from_there(target: Node, dest: str, route: Route) -> list[str]:
    """rsync's options and destination for a source that itself has to reach the target."""
    assert isinstance(target, SshNode)
    hop = Hop(target)
    end = await hop.endpoint()
    along = _along(route, end) if route.kind == "thunderbolt" else ()
    options, place = hop.into(dest, ssh.command((*along, *end.options, *_FAST_CIPHER)))
    return [*options, place]


async def _send(
    source: Node,
    folder: str,
    target: Node,
    args: Sequence[str],
    deadline: float,
    on_progress: OnProgress | None,
) -> None:
    """Run rsync on the source, and say whose fault a failure is."""
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
    if trouble := ssh.explain(done.stderr, host):
        fix = f"On {source.name}: {trouble.fix}"
        raise NodeUnreachable(
            f"{source.name} does not get through to it: {trouble.what}", where=where, fix=fix
        )
    if why := ssh.lost(done.stderr):
        raise NodeUnreachable(f"the connection broke: {why}", where=where)
    why, fix = rsync.explain(done.stderr)
    what = f"rsync ended with status {done.returncode}: {why}"
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
    """File after file through a folder of this machine, which holds one at a time."""
    before = 0
    try:
        root = cache_dir() / "relay"
        root.mkdir(parents=True, exist_ok=True)
        spool_folder = tempfile.TemporaryDirectory(dir=root)
    except OSError as error:
        raise NodeError(f"nothing can be relayed here: {error.strerror}", where=str(cache_dir())) from error
    with spool_folder as spool:
        for name in names:
            path = PurePosixPath(name)
            only = [f"--include=/{_literal(path.name)}", "--exclude=*"]
            held = Path(spool) / "file"
            there = str(PurePosixPath(folder) / path.parent)
            try:
                await source.copy_from(there, held, deadline=deadline, options=[*_OPTIONS[:-1], *only])
            except CommandFailed as error:
                if not rsync.FULL.search(error.what):
                    raise
                what = f"the disk of this machine ran full while it relayed {name}, which it holds meanwhile"
                fix = "Make room there, or set JACCL_CACHE to a folder of another volume; then sync again."
                raise NodeError(what, where=str(root), fix=fix) from error
            one = held / path.name

            def tell(progress: rsync.Progress, before: int = before) -> None:
                if on_progress:
                    on_progress(rsync.Progress(before + progress.sent, progress.rate, None, progress.files))

            await target.copy_to(
                one,
                str(PurePosixPath(dest) / path.parent),
                deadline=deadline,
                on_progress=tell,
                options=_OPTIONS[:-1],
            )
            before += one.stat().st_size
            one.unlink()


def _literal(name: str) -> str:
    """A name as an rsync pattern that matches it alone: a backslash is special only beside a wildcard."""
    if not any(letter in name for letter in "*?["):
        return name
    return "".join(f"\\{letter}" if letter in "\\*?[" else letter for letter in name)
