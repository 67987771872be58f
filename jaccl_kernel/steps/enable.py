"""Enable: which Macs are ready for RDMA over Thunderbolt, which only have it off, which cannot; what to do.

Scans all Macs at once and changes none: the switch can only be thrown by a person at the Mac, so each Mac
gets its steps as a checklist, whose ticks are kept (`checklist.py`). Scanning again turns the lights green.
What makes a Mac ready is `cluster/readiness.py`'s business, what a cable is `cluster/wiring.py`'s.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaccl_kernel.cluster.facts import NodeFacts
from jaccl_kernel.cluster.probe import probe
from jaccl_kernel.cluster.readiness import Readiness, readiness
from jaccl_kernel.cluster.wiring import Cable, Wiring, wire
from jaccl_kernel.jobs.run import OnEvent, ignore
from jaccl_kernel.steps import checklist
from jaccl_kernel.steps.cluster import Cluster
from jaccl_kernel.steps.environment_plan import default_python, from_home
from jaccl_kernel.wire import HOST, Event

STAY_AWAKE = "caffeinate -s"

Kind = Literal["ready", "off", "cannot", "unknown"]
MEANING: dict[Kind, str] = {
    "ready": "ready",
    "off": "capable, but off",
    "cannot": "cannot",
    "unknown": "not tested",
}


@dataclass(frozen=True)
class Task:
    """One step to take at a Mac, and whether the person says that it is done."""

    text: str
    done: bool = False


@dataclass(frozen=True)
class Light:
    """The verdict on one Mac.

    Attributes:
        name: the Mac's name, unlike any other's.
        kind: ready, off (capable, but switched off), cannot, or unknown (not reached, or not tested).
        reasons: why, in sentences.
        tasks: what to do at that Mac, in order.
        hints: what else to know of it: sleep, slow cables, ports that are down.
        chip, macos, build: of the Mac; None where it did not tell.
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
        """The light as JSON's own types."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Link:
    """A cable between two Macs: its ends in words, its speed in Gb/s, and whether that is Thunderbolt 5's."""

    a: str
    b: str
    gbps: float | None
    speed: Literal["full", "slow", "unknown"]
    seen: Literal["both", "half"]


@dataclass(frozen=True)
class EnableReport:
    """What `enable` found.

    Attributes:
        lights: one for each node, in rank order.
        links: the cables between them.
        notes: what concerns the Macs together, in sentences.
        rehearsal: the Macs are simulated: nothing is proven about RDMA.
        facts: the scan itself, for other steps; not part of the JSON (`jaccl probe` tells it).
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
        """The report as JSON's own types."""
        return {
            "ok": self.ok,
            "rehearsal": self.rehearsal,
            "macs": [light.to_json() for light in self.lights],
            "links": [asdict(link) for link in self.links],
            "notes": list(self.notes),
        }


async def enable(cluster: Cluster, on_event: OnEvent = ignore) -> EnableReport:
    """Scan all Macs at once and judge each. Never raises for a Mac: one that does not answer is "unknown".

    Each Mac tells a `stage` of its rank when it has answered, and a `light` with its verdict as JSON (without
    hints: those need the other Macs).

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
        told = {"name": "scan", "text": f"{MEANING[verdict.kind]}: {verdict.reasons[0]}", "fraction": 1.0}
        on_event(Event(rank, "stage", told))
        on_event(Event(rank, "light", _light(facts, verdict, facts.name, ()).to_json()))
        on_event(Event(rank, "done", {"returncode": 0}))
        on_event(Event(HOST, "stage", asking | {"fraction": answered / count}))

    asking = {"name": "scan", "text": f"asking {macs}", "fraction": None}
    on_event(Event(HOST, "stage", asking))
    facts = await probe(cluster.nodes, python=from_home(default_python(cluster)), on_node=heard)
    report = judge(facts, checklist.load(rehearsal=cluster.rehearsal), rehearsal=cluster.rehearsal)
    ready = frozenset(light.name for light in report.lights if light.kind == "ready")
    checklist.forget(ready, rehearsal=cluster.rehearsal)  # should one be off again, it is to be done again
    return report


def judge(
    facts: Sequence[NodeFacts], ticks: checklist.Ticks | None = None, *, rehearsal: bool = False
) -> EnableReport:
    """The report on these facts; pure.

    Args:
        facts: of each node, in rank order.
        ticks: what the person has done, by the Mac's name.
        rehearsal: whether the Macs are simulated.
    """
    wiring = wire(facts)
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
    """What else to know of one Mac, seen together with the others."""
    facts = wiring.nodes[rank]
    if facts.error is not None:
        yield from _silent(wiring)
    if facts.power.may_sleep:
        yield (
            f"It falls asleep after {facts.power.sleep_minutes} idle minutes, and its cables go down then: "
            f"keep it awake with `{STAY_AWAKE}`."
        )
    for cable in wiring.cables:
        if cable.is_loop or rank not in cable.pair:
            continue
        here = cable.end_at(rank)
        far = cable.b if here == cable.a else cable.a
        if cable.is_slow:
            why = _why_slow(cable, wiring)
            yield f"{wiring.place(here)} runs at {cable.gbps:g} Gb/s, not 80: {why}"
        device = facts.device(wiring.port(here).rdma_device)
        if device is not None and device.active is False:
            yield f"{wiring.place(here)} ({device.name}) is down: {_why_down(far.node, wiring, verdicts)}"


def _silent(wiring: Wiring) -> Iterator[str]:
    """What the others' cables tell of a Mac that does not answer."""
    seen = sum(stranger.kind == "mac" for stranger in wiring.strangers)
    if seen:
        cables = "A cable of the other Macs leads" if seen == 1 else f"{seen} cables of the other Macs lead"
        yield (
            f"{cables} to a Mac that is not known yet. If it is this one, it has power, and may be asleep: "
            f"wake it, and keep it awake with `{STAY_AWAKE}`."
        )


def _why_slow(cable: Cable, wiring: Wiring) -> str:
    old = [wiring.labels[node] for node in cable.pair if wiring.nodes[node].thunderbolt5 is False]
    if old:
        return f"{' and '.join(old)} {'has' if len(old) == 1 else 'have'} no Thunderbolt 5."
    return "take a Thunderbolt 5 cable, and Thunderbolt 5 ports at both ends."


def _why_down(peer: int, wiring: Wiring, verdicts: Sequence[Readiness]) -> str:
    name = wiring.labels[peer]
    if verdicts[peer].kind == "off":
        return f"RDMA is off at {name}."
    if verdicts[peer].kind == "cannot":
        return f"{name} cannot use RDMA."
    return f"{name} may be asleep (`{STAY_AWAKE}` there), or one of the two needs a restart."


def _notes(wiring: Wiring) -> Iterator[str]:
    """What concerns the Macs together."""
    builds: dict[str, list[str]] = defaultdict(list)
    for name, facts in zip(wiring.labels, wiring.nodes, strict=True):
        if facts.macos or facts.build:
            builds[f"{facts.macos or '?'} ({facts.build or '?'})"].append(name)
    if len(builds) > 1:
        told = "; ".join(f"{build} on {', '.join(names)}" for build, names in builds.items())
        yield (
            f"The Macs run different builds of macOS: {told}. RDMA wants the same build on all: "
            "System Settings → General → Software Update."
        )
    slow = [cable for cable in wiring.cables if cable.is_slow]
    if slow:
        yield (
            f"{len(slow)} of {len(wiring.cables)} cables run slower than Thunderbolt 5's 80 Gb/s, and every "
            "collective waits for the slowest."
        )
