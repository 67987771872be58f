"""Enable: which Macs are ready for RDMA over Thunderbolt, which have it off or lack it, and the fix.

Scans all Macs at once and changes none: only a person at the Mac can enable RDMA, so each Mac gets a
checklist of steps, whose ticks are saved (`checklist.py`). `topology/readiness.py` decides whether a Mac is
ready, `topology/wiring.py` finds the cables.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.core.events import HOST, Done, Event, Stage
from jaccl_kernel.launch.run import OnEvent, ignore
from jaccl_kernel.steps import checklist
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment.plan import default_python, from_home
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.probe import probe
from jaccl_kernel.topology.readiness import Readiness, readiness
from jaccl_kernel.topology.wiring import Cable, Wiring, build_wiring

STAY_AWAKE = "caffeinate -s"

Kind = Literal["ready", "off", "unsupported", "unknown"]
MEANING: dict[Kind, str] = {
    "ready": "ready",
    "off": "RDMA is off",
    "unsupported": "unsupported",
    "unknown": "not tested",
}


@dataclass(frozen=True)
class Task:
    """One step for a person at a Mac, and whether they marked it as done."""

    text: str
    done: bool = False


@dataclass(frozen=True)
class Light:
    """The verdict on one Mac.

    Attributes:
        name: the Mac's unique name.
        kind: ready, off (supported, but off), unsupported, or unknown (unreachable or not tested).
        reasons: why, in sentences.
        tasks: the steps for that Mac, in order.
        hints: further notes: sleep, slow cables, ports that are down.
        chip, macos, build: of the Mac; None if unknown.
    """

    name: str
    kind: Kind
    reasons: tuple[str, ...]
    tasks: tuple[Task, ...] = ()
    hints: tuple[str, ...] = ()
    chip: str | None = None
    macos: str | None = None
    build: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Link:
    """A cable between two Macs: its two ends, its speed in Gb/s, and whether that is Thunderbolt 5's."""

    a: str
    b: str
    gbps: float | None
    speed: Literal["full", "slow", "unknown"]
    seen: Literal["both", "half"]


@dataclass(frozen=True)
class EnableReport:
    """The result of `enable`.

    Attributes:
        lights: one for each node, in rank order.
        links: the cables between them.
        notes: findings about the Macs together, in sentences.
        rehearsal: whether the Macs are simulated, so that the result proves nothing about RDMA.
        facts: the scan, for other steps; not part of the JSON (see `jaccl probe`).
    """

    lights: tuple[Light, ...]
    links: tuple[Link, ...]
    notes: tuple[str, ...]
    rehearsal: bool
    facts: tuple[NodeFacts, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every Mac is ready."""
        return all(light.kind == "ready" for light in self.lights)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "ok": self.ok,
            "rehearsal": self.rehearsal,
            "macs": [light.to_json() for light in self.lights],
            "links": [asdict(link) for link in self.links],
            "notes": list(self.notes),
        }


async def enable(cluster: Cluster, on_event: OnEvent = ignore) -> EnableReport:
    """Scan all Macs at once and judge each. A Mac that does not answer is "unknown"; it raises no error.

    Sends for each Mac that answered a Stage of its rank with its verdict.

    Raises:
        JacclError: the checklist cannot be written.
    """
    count = len(cluster.nodes)
    macs = f"{count} Mac{'s' if count != 1 else ''}"
    answered = 0

    def heard(rank: int, facts: NodeFacts) -> None:
        nonlocal answered
        answered += 1
        verdict = readiness(facts)
        text = f"{MEANING[verdict.kind]}: {verdict.reasons[0]}"
        on_event(Event(rank, Stage("scan", text, 1.0)))
        on_event(Event(rank, Done()))
        on_event(Event(HOST, Stage("scan", f"scanning {macs}", answered / count)))

    on_event(Event(HOST, Stage("scan", f"scanning {macs}")))
    facts = await probe(cluster.nodes, python=from_home(default_python(cluster)), on_node=heard)
    report = judge(facts, checklist.load(rehearsal=cluster.rehearsal), rehearsal=cluster.rehearsal)
    ready = frozenset(light.name for light in report.lights if light.kind == "ready")
    checklist.forget(ready, rehearsal=cluster.rehearsal)  # RDMA may be off again later
    return report


def judge(
    facts: Sequence[NodeFacts], ticks: checklist.Ticks | None = None, *, rehearsal: bool = False
) -> EnableReport:
    """Return the report on these facts; pure.

    Args:
        facts: of each node, in rank order.
        ticks: the steps marked as done, by the Mac's name.
        rehearsal: whether the Macs are simulated.
    """
    wiring = build_wiring(facts)
    verdicts = [readiness(node) for node in facts]
    lights = tuple(
        _light(
            node,
            verdict,
            wiring.labels[rank],
            tuple(_hints(rank, wiring, verdicts)),
            (ticks or {}).get(wiring.labels[rank], frozenset()),
        )
        for rank, (node, verdict) in enumerate(zip(facts, verdicts, strict=True))
    )
    links = tuple(_link(wiring, cable) for cable in wiring.cables if not cable.is_loop)
    return EnableReport(lights, links, tuple(_notes(wiring)), rehearsal, tuple(facts))


def _light(
    facts: NodeFacts,
    verdict: Readiness,
    name: str,
    hints: tuple[str, ...],
    ticked: frozenset[str] = frozenset(),
) -> Light:
    tasks = tuple(Task(step, step in ticked) for step in verdict.steps)
    return Light(name, verdict.kind, verdict.reasons, tasks, hints, facts.chip, facts.macos, facts.build)


def _link(wiring: Wiring, cable: Cable) -> Link:
    speed: Literal["full", "slow", "unknown"] = "slow" if cable.is_slow else "full"
    if cable.gbps is None:
        speed = "unknown"
    return Link(wiring.place(cable.a), wiring.place(cable.b), cable.gbps, speed, cable.seen)


def _hints(rank: int, wiring: Wiring, verdicts: Sequence[Readiness]) -> Iterator[str]:
    """Yield further notes on one Mac, given the facts of the others."""
    facts = wiring.nodes[rank]
    if facts.error is not None:
        yield from _unreachable(wiring)
    if facts.power.may_sleep:
        yield (
            f"It sleeps after {facts.power.sleep_minutes} idle minutes, and sleep takes its links down: "
            f"keep it awake with `{STAY_AWAKE}`."
        )
    for cable in wiring.cables:
        if cable.is_loop or rank not in cable.pair:
            continue
        here = cable.end_at(rank)
        peer = cable.b if here == cable.a else cable.a
        if cable.is_slow:
            why = _why_slow(cable, wiring)
            yield f"{wiring.place(here)} runs at {cable.gbps:g} Gb/s, not 80: {why}"
        device = facts.device(wiring.port(here).rdma_device)
        if device is not None and device.active is False:
            yield f"{wiring.place(here)} ({device.name}) is down: {_why_down(peer.node, wiring, verdicts)}"


def _unreachable(wiring: Wiring) -> Iterator[str]:
    """Yield what the other Macs' cables show about a Mac that does not answer."""
    seen = sum(device.kind == "mac" for device in wiring.foreign_devices)
    if seen:
        cables = "Another Mac's cable leads" if seen == 1 else f"{seen} cables of other Macs lead"
        yield (
            f"{cables} to an unknown Mac. If it is this one, it has power and may be asleep: wake it, and "
            f"keep it awake with `{STAY_AWAKE}`."
        )


def _why_slow(cable: Cable, wiring: Wiring) -> str:
    old = [wiring.labels[node] for node in cable.pair if wiring.nodes[node].thunderbolt5 is False]
    if old:
        return f"{' and '.join(old)} {'has' if len(old) == 1 else 'have'} no Thunderbolt 5."
    return "use a Thunderbolt 5 cable, and Thunderbolt 5 ports at both ends."


def _why_down(peer: int, wiring: Wiring, verdicts: Sequence[Readiness]) -> str:
    name = wiring.labels[peer]
    if verdicts[peer].kind == "off":
        return f"RDMA is off on {name}."
    if verdicts[peer].kind == "unsupported":
        return f"{name} does not support RDMA."
    return f"{name} may be asleep (run `{STAY_AWAKE}` on it), or one of the two needs a restart."


def _notes(wiring: Wiring) -> Iterator[str]:
    """Yield findings about the Macs together."""
    builds: dict[str, list[str]] = defaultdict(list)
    for name, facts in zip(wiring.labels, wiring.nodes, strict=True):
        if facts.macos or facts.build:
            builds[f"{facts.macos or '?'} ({facts.build or '?'})"].append(name)
    if len(builds) > 1:
        versions = "; ".join(f"{build} on {', '.join(names)}" for build, names in builds.items())
        yield (
            f"The Macs run different builds of macOS: {versions}. RDMA needs the same build on all: "
            "System Settings → General → Software Update."
        )
    slow = [cable for cable in wiring.cables if cable.is_slow]
    if slow:
        yield (
            f"{len(slow)} of {len(wiring.cables)} cables run slower than Thunderbolt 5's 80 Gb/s, and every "
            "collective waits for the slowest."
        )
