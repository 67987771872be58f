"""The commands that let one Mac log in to another, so that a model can go directly between them.

They are shown, never run: a key on a Mac is the user's decision.
"""

import shlex

from jaccl_kernel.core.errors import NodeError
from jaccl_kernel.nodes.node import Node
from jaccl_kernel.nodes.ssh_node import SshNode
from jaccl_kernel.nodes.transfer import Endpoint, RoutedNode

_MAKE = (
    "umask 077 && mkdir -p ~/.ssh && "
    '{ test -f ~/.ssh/id_ed25519.pub || ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519; }'
)
_READ = "cat ~/.ssh/id_ed25519.pub"
_ALLOW = (
    "umask 077 && mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && read -r key && "
    '{ grep -qxF "$key" ~/.ssh/authorized_keys || echo "$key" >> ~/.ssh/authorized_keys; }'
)


def commands(source: str, target: str, end: Endpoint) -> tuple[str, ...]:
    """The commands, to run on this machine: make a key, allow it, learn the target's host key.

    Args:
        source, target: the ssh names of the two Macs on this machine.
        end: the connection settings of the target, which the source's ssh config need not have.
    """
    login = f"{end.user}@{end.hostname}" if end.user else end.hostname
    trust = shlex.join(["ssh", "-o", "StrictHostKeyChecking=accept-new", "-p", end.port, "--", login, "true"])
    return (
        shlex.join(["ssh", source, _MAKE]),
        f"{shlex.join(['ssh', source, _READ])} | {shlex.join(['ssh', target, _ALLOW])}",
        shlex.join(["ssh", source, trust]),
    )


async def advice(source: Node, target: Node) -> tuple[str, ...]:
    """The notes for a source that cannot log in to the target; none if one of them is this machine."""
    if not isinstance(source, SshNode) or not isinstance(target, SshNode):
        return ()
    try:
        end = await RoutedNode(target).endpoint()
    except NodeError:
        return ()
    name = source.name
    return (
        f"to let {name} send to {target.name}, run on this machine, then sync again:",
        *commands(source.host, target.host, end),
        f"or let {name} use your keys: ForwardAgent yes for {source.host} in ~/.ssh/config, and ssh-add",
    )
