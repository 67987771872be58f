"""What the bring-up steps share: a scan, told as it goes, and the hostfile that real Macs would have."""

from collections.abc import Sequence

from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.hostfile import Hostfile
from jaccl_kernel.cluster.probe import probe
from jaccl_kernel.errors import InputError
from jaccl_kernel.jobs.run import OnEvent
from jaccl_kernel.rehearsal.plan import as_if_real, is_rehearsal
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.wire import HOST, Event


async def scan(
    cluster: Cluster, python: str, on_event: OnEvent, facts: Sequence[NodeFacts] | None = None
) -> tuple[NodeFacts, ...]:
    """The facts of all nodes, in rank order; `facts`, if given, are taken instead.

    Raises:
        InputError: `facts` are of another number of Macs.
    """
    if facts is not None:
        if len(facts) != len(cluster.nodes):
            raise InputError(f"facts of {len(facts)} Macs were given for {len(cluster.nodes)}")
        return tuple(facts)
    size, answered = len(cluster.nodes), 0
    tell(on_event, "probe", f"asking {size} Mac{'s' * (size > 1)}", 0.0)

    def on_node(_number: int, node: NodeFacts) -> None:
        nonlocal answered
        answered += 1
        how = "answered" if node.error is None else f"gave nothing: {node.error}"
        tell(on_event, "probe", f"{node.name} {how} ({answered} of {size})", answered / size)

    return tuple(await probe(cluster.nodes, python=python, on_node=on_node))


def meant(hostfile: Hostfile) -> Hostfile:
    """What to hold against the facts: the hostfile, or what real Macs would have in a rehearsal's place.

    Raises:
        HostfileError: a rehearsal's that makes no sense.
    """
    return as_if_real(hostfile) if is_rehearsal(hostfile) else hostfile


def tell(on_event: OnEvent, name: str, text: str, fraction: float | None = None) -> None:
    """Tell a stage of the host's own work."""
    on_event(Event(HOST, "stage", {"name": name, "text": text, "fraction": fraction}))
