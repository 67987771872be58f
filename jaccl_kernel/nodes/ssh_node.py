"""A Mac that system ssh reaches, as a node; and the choice of the node class for a hostfile's `ssh` name."""

from collections.abc import Mapping, Sequence

from jaccl_kernel.core import process
from jaccl_kernel.core.errors import NodeError, NodeUnreachable
from jaccl_kernel.core.system_tools import TOOLS
from jaccl_kernel.nodes import rsync, ssh
from jaccl_kernel.nodes.local_node import LocalNode
from jaccl_kernel.nodes.node import Completed, Launch, Node

_LOCAL = "127.0.0.1"
"""The only host name that mlx.launch runs without ssh."""


class SshNode(Node):
    """A Mac that system ssh reaches, with the user's ssh config and keys, without interactive prompts.

    The remote login shell may be zsh, bash, sh, dash, ksh or fish, but not csh.

    Args:
        host: the ssh destination: a name, user@name, or an alias of the ssh config.
        name: the name in reports and errors; the host if None.
        options: additional ssh options, such as ("-F", "config"); words without white space.

    Raises:
        InputError: an invalid host or option.
    """

    def __init__(self, host: str, name: str | None = None, options: Sequence[str] = ()) -> None:
        super().__init__(name or host)
        self.host = ssh.check_host(host)
        self._ssh = ssh.command(options)

    @property
    def where(self) -> str:
        """The name of the node in errors: its name, and its ssh name if that differs."""
        return self.name if self.name == self.host else f"{self.name} (ssh {self.host})"

    def _launch(self, argv: Sequence[str], env: Mapping[str, str], input_size: int) -> Launch:
        settings = ["/usr/bin/env", *(f"{key}={value}" for key, value in env.items())] if env else []
        remote = process.guarded([*settings, *argv], input_size)
        return Launch([*self._ssh, "--", self.host, ssh.command_line(remote)])

    def _not_started(self, error: OSError, shown: str) -> NodeError:
        if not isinstance(error, FileNotFoundError):
            return NodeError(f"cannot start ssh for `{shown}`: {error}", where=self.where)
        what = f"cannot run `{shown}`: ssh is not installed on this machine"
        return NodeUnreachable(what, where=self.where, fix=TOOLS["ssh"].fix)

    def _connection_error(self, ended: process.Ended, shown: str, deadline: float) -> NodeUnreachable | None:
        if ended.began:
            if ended.timed_out or ended.own_255 or ended.returncode != 255:
                return None
            return self._lost(ssh.lost(ended.stderr) or "no message from ssh", f"`{shown}` ran")
        diagnosis = ssh.explain(ended.noise, self.host)
        if not diagnosis:
            output = " / ".join(filter(None, ended.noise.splitlines())) or "none"
            how = (
                f"ssh did not connect within {deadline:g} s"
                if ended.timed_out
                else f"the remote side exited with status {ended.returncode}"
            )
            diagnosis = ssh.Diagnosis(
                f"{how}; output: {output}", f"Test the connection: ssh -v {self.host} true"
            )
        return NodeUnreachable(f"cannot run `{shown}`: {diagnosis.what}", where=self.where, fix=diagnosis.fix)

    def _lost(self, why: str, meanwhile: str) -> NodeUnreachable:
        fix = f"Check that the Mac is on, awake and on the network, then test: ssh {self.host} true"
        return NodeUnreachable(f"the connection broke while {meanwhile}: {why}", where=self.where, fix=fix)

    def _copy_error(self, done: Completed, shown: str) -> NodeError:
        if diagnosis := ssh.explain(done.stderr, self.host):
            what = f"the copy of {shown} failed: {diagnosis.what}"
            return NodeUnreachable(what, where=self.where, fix=diagnosis.fix)
        if why := ssh.lost(done.stderr):
            return self._lost(why, f"rsync copied {shown}")
        return super()._copy_error(done, shown)

    def _rsync_path(self, folder: str, *, create: bool) -> tuple[list[str], str]:
        return rsync.ssh_options(self._ssh, folder, create=create), rsync.remote_path(self.host)

    def _copier(self) -> LocalNode:
        return LocalNode(self.where)


def node_for(host: str, name: str | None = None, options: Sequence[str] = ()) -> Node:
    """The node for a hostfile's `ssh` name; as in mlx.launch, the literal 127.0.0.1 is this machine."""
    return LocalNode(name or host) if host == _LOCAL else SshNode(host, name, options)
