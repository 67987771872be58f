"""Shared by the bring-up steps: a scan with progress events, and a rehearsal's hostfile as of real Macs."""

from collections.abc import Sequence

from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.events import HOST, Event, Stage
from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.launch.run import OnEvent
from jaccl_kernel.rehearsal.plan import as_if_real, is_rehearsal
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.probe import probe


async def scan(
    cluster: Cluster, python: str, on_event: OnEvent, facts: Sequence[NodeFacts] | None = None
) -> tuple[NodeFacts, ...]:
    """Return the facts of all nodes, in rank order. Given `facts` replace the scan.

    Raises:
        InputError: the number of `facts` differs from the number of nodes.
    """
    if facts is not None:
        if len(facts) != len(cluster.nodes):
            raise InputError(f"got facts of {len(facts)} Macs, but the cluster has {len(cluster.nodes)}")
        return tuple(facts)
    size, answered = len(cluster.nodes), 0
    tell(on_event, "probe", f"scanning {size} Mac{'s' * (size > 1)}", 0.0)

    def on_node(_number: int, node: NodeFacts) -> None:
        nonlocal answered
        answered += 1
        how = "answered" if node.error is None else f"failed: {node.error}"
        tell(on_event, "probe", f"{node.name} {how} ({answered} of {size})", answered / size)

    return tuple(await probe(cluster.nodes, python=python, on_node=on_node))


def meant(hostfile: Hostfile) -> Hostfile:
    """Return the hostfile to compare with the facts: for a rehearsal, the hostfile that real Macs would have.

    Raises:
        HostfileError: the rehearsal's description is invalid.
    """
    return as_if_real(hostfile) if is_rehearsal(hostfile) else hostfile


def tell(on_event: OnEvent, name: str, text: str, fraction: float | None = None) -> None:
    """Report a stage of the host's own work."""
    on_event(Event(HOST, Stage(name, text, fraction)))
