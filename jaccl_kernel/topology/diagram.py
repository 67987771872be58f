"""Draws a wiring as self-contained SVG or as Graphviz dot. Pure.

A solid green line is a cable that both ends see; red is missing or wrong; grey is not tested or seen from one
end only. Each state also has its own dash pattern and mark, so that the diagram works without colours. Text
colours follow JupyterLab's theme, or the system's theme outside JupyterLab.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, hypot, pi, remainder, sin
from xml.sax.saxutils import escape

from jaccl_kernel.topology.issues import describe
from jaccl_kernel.topology.wiring import Cable, End, Wiring

_DISC = 34.0  # radius of a node
_BADGE = 10.0  # radius of a port's badge
_LINE = 17.0  # height of a line of text
_LETTER = 7.2  # approximate width of a letter: SVG cannot measure text
_BIG_LETTER = 9.0  # the same, in the headline
_APART = 0.5  # radians between two badges on a node, so that they do not touch
_ROUNDS = 30  # iterations that push overlapping badges apart
_MARK_AT = 0.36  # position of the mark on a cable: not the middle, where diagonals cross

_STYLE = """
.jaccl-wiring{--fg:var(--jp-ui-font-color1,#1f2328);--dim:var(--jp-ui-font-color2,#59636e);
--card:var(--jp-layout-color2,#eef1f4);--page:var(--jp-layout-color1,#fff);
--good:#2b9a52;--bad:#d6404c;--warn:#b7791f;--grey:#8a939c;
font:13px var(--jp-ui-font-family,system-ui,sans-serif)}
@media(prefers-color-scheme:dark){.jaccl-wiring{--fg:var(--jp-ui-font-color1,#e6edf3);
--dim:var(--jp-ui-font-color2,#9198a1);--card:var(--jp-layout-color2,#262c36);--page:var(--jp-layout-color1,#0d1117)}}
.jaccl-wiring text{fill:var(--fg)}.jaccl-wiring .dim{fill:var(--dim);font-size:12px}
.jaccl-wiring .name{font-weight:600}.jaccl-wiring .headline{font-size:15px;font-weight:600}
.jaccl-wiring .rank{font-size:22px;font-weight:600;text-anchor:middle;dominant-baseline:central}
.jaccl-wiring .disc{fill:var(--card);stroke:var(--dim);stroke-width:1.5}
.jaccl-wiring .untested-node .disc{stroke:var(--grey);stroke-dasharray:3 4}
.jaccl-wiring path{fill:none;stroke-width:3;stroke-linecap:round}
.jaccl-wiring .badge circle,.jaccl-wiring .mark circle{fill:var(--page);stroke-width:2}
.jaccl-wiring .badge text,.jaccl-wiring .mark text{font-size:11px;font-weight:600;text-anchor:middle;
dominant-baseline:central}
.jaccl-wiring .full{stroke:var(--good)}.jaccl-wiring .slow{stroke:var(--warn)}
.jaccl-wiring .missing,.jaccl-wiring .extra{stroke:var(--bad)}
.jaccl-wiring .half,.jaccl-wiring .untested,.jaccl-wiring .other{stroke:var(--grey)}
.jaccl-wiring path.slow{stroke-dasharray:16 7}.jaccl-wiring path.missing{stroke-dasharray:9 8}
.jaccl-wiring path.half{stroke-dasharray:1 8}.jaccl-wiring path.untested{stroke-dasharray:1 12}
""".strip()

_LEGEND = {
    "full": ("", "seen from both ends"),
    "missing": ("×", "missing"),
    "extra": ("+", "not needed"),
    "slow": ("!", "below 80 Gb/s"),
    "half": ("½", "seen from one end"),
    "untested": ("?", "not tested"),
}
_ALWAYS = ("full", "missing", "untested")


def _safe(text: str) -> str:
    """Text for XML: escaped, and without the control characters that XML does not allow."""
    return escape("".join(c if c.isprintable() else " " for c in text), {'"': "&quot;"})


@dataclass(frozen=True)
class _Point:
    x: float
    y: float

    def toward(self, angle: float, distance: float) -> "_Point":
        return _Point(self.x + cos(angle) * distance, self.y + sin(angle) * distance)

    def bearing(self, other: "_Point") -> float:
        return atan2(other.y - self.y, other.x - self.x)

    def __str__(self) -> str:
        return f"{self.x:.1f} {self.y:.1f}"


def kind_of(wiring: Wiring, cable: Cable) -> str:
    """The drawing style of a cable: "full", "half", "slow", or "extra" for one that jobs do not use."""
    if cable.is_loop or cable not in (wiring.between(cable.pair)[0], *wiring.used(cable.pair)):
        return "extra"
    return "half" if cable.seen == "half" else "slow" if cable.is_slow else "full"


def headline(wiring: Wiring) -> str:
    """A one-line summary of the wiring."""
    states = [wiring.state(pair) for pair in wiring.pairs]
    if not states:
        return "One Mac: no cables needed" if wiring.nodes else "No Macs"
    full, pairs = states.count("full"), "pairs" if len(states) > 1 else "pair"
    slow = sum(kind_of(wiring, cable) == "slow" for cable in wiring.cables)
    slower = f", {slow} below 80 Gb/s" if slow else ""
    if wiring.topology == "mesh":
        return f"Full mesh: {full} of {full} {pairs} connected{slower}"
    if wiring.is_only_a_ring:
        return f"Ring of {len(wiring.nodes)} Macs (too few ports for a mesh){slower}"
    counts = {"missing": "missing", "half": "seen from one end only", "untested": "not tested"}
    rest = [f"{states.count(state)} {words}" for state, words in counts.items() if state in states]
    ring = "; a ring is possible" if wiring.topology == "ring" else ""
    return f"{', '.join([f'{full} of {len(states)} {pairs} connected', *rest])}{slower}{ring}"


def svg(wiring: Wiring) -> str:
    """The diagram as SVG, for a notebook or a file."""
    points, angles = _layout(len(wiring.nodes))
    notes = [_notes(wiring, i) for i in range(len(wiring.nodes))]
    blocks = [_Block.beside(points[i], angles[i], lines) for i, lines in enumerate(notes)]
    drawn = list(_cables(wiring, points))
    kinds = {kind for kind, _ in drawn}
    legend = [kind for kind in _LEGEND if kind in kinds or kind in _ALWAYS]
    title = headline(wiring)
    left = min([-200.0, *(block.left for block in blocks)]) - 20
    right = max([200.0, left + len(title) * _BIG_LETTER, *(block.right for block in blocks)]) + 20
    top = min([-60.0, *(block.top for block in blocks), *(point.y - _DISC for point in points)]) - 58
    bottom = max([60.0, *(block.bottom for block in blocks), *(point.y + _DISC for point in points)]) + 40
    rows = _legend(legend, left + 24, bottom, right - left - 48)
    height = bottom - top + 24 * len({y for y, _ in rows}) + 6
    return "".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" class="jaccl-wiring" role="img" ',
            f'aria-label="{_safe(title)}" ',
            f'viewBox="{left:.0f} {top:.0f} {right - left:.0f} {height:.0f}" ',
            f'style="width:100%;max-width:{right - left:.0f}px">',
            f"<style>{_STYLE}</style>",
            f'<text class="headline" x="{left + 24:.0f}" y="{top + 28:.0f}">{_safe(title)}</text>',
            *(markup for _, markup in drawn),
            *(_node(wiring, i, points[i], blocks[i]) for i in range(len(points))),
            *(markup for _, markup in rows),
            "</svg>",
        ]
    )


def _layout(count: int) -> tuple[list[_Point], list[float]]:
    """The positions of the nodes, and the outward direction of each."""
    radius = 0.0 if count < 2 else 150.0 + 20 * max(count - 3, 0)
    start = {2: pi, 4: -3 * pi / 4}.get(count, -pi / 2)
    angles = [start + 2 * pi * i / max(count, 1) for i in range(count)]
    return [_Point(0, 0).toward(angle, radius) for angle in angles], angles


def _notes(wiring: Wiring, node: int) -> list[tuple[str, str]]:
    """The text lines beside a node, each with its CSS class."""
    facts = wiring.nodes[node]
    about = [facts.chip] if facts.chip else []
    if facts.memory:
        about.append(f"{facts.memory / 2**30:.0f} GB")
    lines = [("name", wiring.labels[node])]
    if about:
        lines.append(("dim", ", ".join(about)))
    if facts.ports is None:
        lines.append(("dim", "not tested"))
    for device in wiring.foreign_devices:
        if device.end.node == node:
            what = {"device": "", "mac": "unknown Mac: ", "dock": "behind a dock: ", "stale": "stale: "}[
                device.kind
            ]
            lines.append(("dim", f"port {wiring.port(device.end).number}: {what}{device.plugged.label}"))
    for cable in wiring.cables:
        if cable.hub and node in cable.pair:
            lines.append(("dim", f"port {wiring.port(cable.end_at(node)).number}: through {cable.hub}"))
        if cable.pair == (node, node):
            numbers = [wiring.port(end).number for end in (cable.a, cable.b)]
            lines.append(("dim", f"ports {numbers[0]} and {numbers[1]}: cable to itself"))
    return lines


@dataclass(frozen=True)
class _Block:
    """Lines of text on the outer side of a node."""

    lines: list[tuple[str, str]]
    x: float
    top: float
    anchor: str

    @classmethod
    def beside(cls, point: _Point, angle: float, lines: list[tuple[str, str]]) -> "_Block":
        height, gap = len(lines) * _LINE, _DISC + 14
        if abs(cos(angle)) < 0.3:  # above or below
            return cls(lines, point.x, point.y - gap - height if sin(angle) < 0 else point.y + gap, "middle")
        anchor = "start" if cos(angle) > 0 else "end"
        return cls(lines, point.x + (gap if anchor == "start" else -gap), point.y - height / 2, anchor)

    @property
    def width(self) -> float:
        return max(len(text) for _, text in self.lines) * _LETTER

    @property
    def left(self) -> float:
        return self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * self.width

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + len(self.lines) * _LINE


def _node(wiring: Wiring, node: int, point: _Point, block: _Block) -> str:
    facts = wiring.nodes[node]
    used = sum(bool(port.connected) for port in facts.ports or ())
    ports = "not tested" if facts.ports is None else f"{used} of {len(facts.ports)} Thunderbolt ports in use"
    texts = [
        f'<text class="{kind}" x="{block.x:.1f}" y="{block.top + _LINE * (i + 0.75):.1f}" '
        f'text-anchor="{block.anchor}">{_safe(text)}</text>'
        for i, (kind, text) in enumerate(block.lines)
    ]
    return (
        f'<g class="{"untested-node" if facts.ports is None else "tested-node"}">'
        f"<title>{_safe(wiring.labels[node])}: rank {node}, {ports}</title>"
        f'<circle class="disc" cx="{point.x:.1f}" cy="{point.y:.1f}" r="{_DISC:.0f}"/>'
        f'<text class="rank" x="{point.x:.1f}" y="{point.y:.1f}">{node}</text>{"".join(texts)}</g>'
    )


def _cables(wiring: Wiring, points: list[_Point]) -> Iterator[tuple[str, str]]:
    """The kind and markup of each cable, and of each missing one."""
    bearings = _bearings(wiring, points)
    for pair in wiring.pairs:
        a, b = (points[node] for node in pair)
        cables = wiring.between(pair)
        if not cables and not wiring.is_only_a_ring:
            state = wiring.state(pair)
            tooltip = f"{' and '.join(wiring.labels[node] for node in pair)}: {_LEGEND[state][1]}"
            start, end = a.toward(a.bearing(b), _DISC + 6), b.toward(b.bearing(a), _DISC + 6)
            yield state, _line(start, end, 0, state, tooltip, ())
        for i, cable in enumerate(cables):
            kind = kind_of(wiring, cable)
            start, end = (points[at.node].toward(bearings[at], _DISC + _BADGE) for at in (cable.a, cable.b))
            bend = (i - (len(cables) - 1) / 2) * 0.3
            numbers = tuple(str(wiring.port(at).number or "?") for at in (cable.a, cable.b))
            yield kind, _line(start, end, bend, kind, _tooltip(wiring, cable, kind), numbers)


def _bearings(wiring: Wiring, points: list[_Point]) -> dict[End, float]:
    """The direction of each cable end's badge from its node: towards the peer, without overlaps."""
    found: dict[End, float] = {}
    for node, here in enumerate(points):
        inward = here.bearing(_Point(0, 0))
        wanted: dict[End, float] = {}
        for pair in wiring.pairs:
            cables = wiring.between(pair) if node in pair else ()
            for i, cable in enumerate(cables):
                there = points[sum(pair) - node]
                aside = (i - (len(cables) - 1) / 2) * _APART * (1 if node == pair[0] else -1)
                # relative to inward, so that no angle is near the discontinuity at pi
                wanted[cable.end_at(node)] = remainder(here.bearing(there) - inward, 2 * pi) + aside
        ends = sorted(wanted, key=lambda end: wanted[end])
        for _ in range(_ROUNDS):
            for one, other in pairwise(ends):
                if (overlap := _APART - (wanted[other] - wanted[one])) > 0:
                    wanted[one] -= overlap / 2
                    wanted[other] += overlap / 2
        found |= {end: inward + angle for end, angle in wanted.items()}
    return found


def _tooltip(wiring: Wiring, cable: Cable, kind: str) -> str:
    def end(at: End) -> str:
        return f"{wiring.place(at)} ({wiring.port(at).interface or 'no interface known'})"

    speed = f", {cable.gbps:g} Gb/s" if cable.gbps is not None else ""
    return f"{end(cable.a)} to {end(cable.b)}{speed}: {_LEGEND[kind][1]}"


def _line(start: _Point, end: _Point, bend: float, kind: str, tooltip: str, ports: tuple[str, ...]) -> str:
    """A present or missing cable as a curve; `bend` is relative to its length; with mark and port badges."""
    middle = _Point((start.x + end.x) / 2, (start.y + end.y) / 2)
    control = middle.toward(start.bearing(end) + pi / 2, hypot(end.x - start.x, end.y - start.y) * bend)
    t = _MARK_AT
    mark = _Point(
        (1 - t) ** 2 * start.x + 2 * t * (1 - t) * control.x + t * t * end.x,
        (1 - t) ** 2 * start.y + 2 * t * (1 - t) * control.y + t * t * end.y,
    )
    sign = _LEGEND[kind][0]
    badges = [_badge(at, text, kind, "badge") for at, text in zip((start, end), ports, strict=False)]
    return (
        f'<g><title>{_safe(tooltip)}</title><path class="{kind}" d="M{start}Q{control} {end}"/>'
        f"{_badge(mark, sign, kind, 'mark') if sign else ''}{''.join(badges)}</g>"
    )


def _badge(at: _Point, text: str, kind: str, role: str) -> str:
    return (
        f'<g class="{role}"><circle class="{kind}" cx="{at.x:.1f}" cy="{at.y:.1f}" r="{_BADGE:.0f}"/>'
        f'<text x="{at.x:.1f}" y="{at.y:.1f}">{_safe(text)}</text></g>'
    )


def _legend(kinds: list[str], left: float, top: float, width: float) -> list[tuple[float, str]]:
    """The legend, wrapped into rows: each item with the y position of its row."""
    items, x, y = [], left, top
    for kind in kinds:
        sign, label = _LEGEND[kind]
        space = 64 + len(label) * _LETTER
        if x > left and x + space > left + width:
            x, y = left, y + 24
        mark = _badge(_Point(x + 20, y), sign, kind, "mark") if sign else ""
        line = f'<path class="{kind}" d="M{x:.0f} {y:.0f}h40"/>'
        text = f'<text class="dim" x="{x + 50:.0f}" y="{y + 4:.0f}">{_safe(label)}</text>'
        items.append((y, line + mark + text))
        x += space
    return items


_DOT_STYLE = {
    "full": 'color="#2b9a52"',
    "extra": 'color="#d6404c", penwidth=2',
    "slow": 'color="#b7791f", style=dashed',
    "half": 'color="#8a939c", style=dotted',
    "missing": 'color="#d6404c", style=dashed, label="missing"',
    "untested": 'color="#8a939c", style=dotted, label="not tested"',
}


def dot(wiring: Wiring) -> str:
    """The wiring as an undirected Graphviz graph; edge labels have the ports' interfaces."""
    lines = ["graph wiring {", "  layout=circo;", "  node [shape=box, style=rounded];"]
    for i, label in enumerate(wiring.labels):
        text = f"{label}\nrank {i}"
        lines.append(f"  n{i} [label={_quoted(text)}];")
    lines += [
        f"  n{pair[0]} -- n{pair[1]} [{_DOT_STYLE[wiring.state(pair)]}];"
        for pair in wiring.pairs
        if not wiring.between(pair) and not wiring.is_only_a_ring
    ]
    for cable in wiring.cables:
        label = _quoted("/".join(_port_label(wiring, end) for end in (cable.a, cable.b)))
        style = _DOT_STYLE[kind_of(wiring, cable)]
        lines.append(f"  n{cable.pair[0]} -- n{cable.pair[1]} [label={label}, {style}];")
    for i, device in enumerate(wiring.foreign_devices):
        lines.append(f"  s{i} [label={_quoted(device.plugged.label)}, shape=plain];")
        lines.append(
            f"  n{device.end.node} -- s{i} [style=dotted, tooltip={_quoted(describe(wiring, device))}];"
        )
    return "\n".join([*lines, "}", ""])


def _port_label(wiring: Wiring, end: End) -> str:
    port = wiring.port(end)
    return f"{port.number or '?'} {port.interface or '?'}"


def _quoted(text: str) -> str:
    """A quoted dot string: quotes, backslashes and line ends escaped."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
