"""A wiring as a picture: self-contained SVG, or Graphviz's dot; pure.

Green and solid is a cable that both ends see; red is missing or wrong; grey is not tested, or seen from one
end only. Each state has its own dashes and mark too, so the picture can be read without colours. The SVG's
texts take their colours from JupyterLab's theme, and from the system's where there is none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, hypot, pi, remainder, sin
from xml.sax.saxutils import escape

from jaccl_kernel.cluster.flaws import describe
from jaccl_kernel.cluster.wiring import Cable, End, Wiring

_DISC = 34.0  # radius of a node
_BADGE = 10.0  # radius of a port's badge
_LINE = 17.0  # height of a line of text
_LETTER = 7.2  # width of a letter, about: SVG cannot measure text
_BIG_LETTER = 9.0  # the same, in the headline
_APART = 0.5  # radians between two badges on a node, so that they do not touch
_ROUNDS = 30  # of pushing badges apart
_MARK_AT = 0.36  # where on a cable its mark stands: not the middle, where diagonals cross

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
.jaccl-wiring .untold .disc{stroke:var(--grey);stroke-dasharray:3 4}
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
    "extra": ("+", "one too many"),
    "slow": ("!", "below 80 Gb/s"),
    "half": ("½", "seen from one end"),
    "untested": ("?", "not tested"),
}
_ALWAYS = ("full", "missing", "untested")


def _safe(text: str) -> str:
    """Text for XML: escaped, and without the control characters that XML cannot hold at all."""
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
    """How a cable is drawn: "full", "half", "slow", or "extra" for one that no mesh needs."""
    if cable.is_loop or cable != wiring.between(cable.pair)[0]:
        return "extra"
    return "half" if cable.seen == "half" else "slow" if cable.is_slow else "full"


def headline(wiring: Wiring) -> str:
    """The wiring in one line."""
    states = [wiring.state(pair) for pair in wiring.pairs]
    if not states:
        return "One Mac: nothing to cable" if wiring.nodes else "No Macs"
    full, pairs = states.count("full"), "pairs" if len(states) > 1 else "pair"
    slow = sum(kind_of(wiring, cable) == "slow" for cable in wiring.cables)
    slower = f", {slow} below 80 Gb/s" if slow else ""
    if wiring.topology == "mesh":
        return f"A full mesh: {full} of {full} {pairs} cabled{slower}"
    if wiring.is_only_a_ring:
        return f"A ring of {len(wiring.nodes)} Macs, which lack the ports for a mesh{slower}"
    counts = {"missing": "missing", "half": "seen from one end only", "untested": "not tested"}
    rest = [f"{states.count(state)} {words}" for state, words in counts.items() if state in states]
    ring = "; a ring is possible" if wiring.topology == "ring" else ""
    return f"{', '.join([f'{full} of {len(states)} {pairs} cabled', *rest])}{slower}{ring}"


def svg(wiring: Wiring) -> str:
    """The picture, ready to be shown in a notebook or written to a file."""
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
    """Where the nodes stand, and in which direction each looks outward."""
    radius = 0.0 if count < 2 else 150.0 + 20 * max(count - 3, 0)
    start = {2: pi, 4: -3 * pi / 4}.get(count, -pi / 2)
    angles = [start + 2 * pi * i / max(count, 1) for i in range(count)]
    return [_Point(0, 0).toward(angle, radius) for angle in angles], angles


def _notes(wiring: Wiring, node: int) -> list[tuple[str, str]]:
    """The lines that stand beside a node, each with its class."""
    facts = wiring.nodes[node]
    about = [facts.chip] if facts.chip else []
    if facts.memory:
        about.append(f"{facts.memory / 2**30:.0f} GB")
    lines = [("name", wiring.labels[node])]
    if about:
        lines.append(("dim", ", ".join(about)))
    if facts.ports is None:
        lines.append(("dim", "not tested"))
    for stranger in wiring.strangers:
        if stranger.end.node == node:
            what = {"device": "", "mac": "unknown Mac: ", "dock": "behind a dock: ", "stale": "stale: "}[
                stranger.kind
            ]
            lines.append(("dim", f"port {wiring.port(stranger.end).number}: {what}{stranger.plugged.label}"))
    for cable in wiring.cables:
        if cable.pair == (node, node):
            numbers = [wiring.port(end).number for end in (cable.a, cable.b)]
            lines.append(("dim", f"ports {numbers[0]} and {numbers[1]}: a cable to itself"))
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
    told = "not tested" if facts.ports is None else f"{used} of {len(facts.ports)} Thunderbolt ports in use"
    texts = [
        f'<text class="{kind}" x="{block.x:.1f}" y="{block.top + _LINE * (i + 0.75):.1f}" '
        f'text-anchor="{block.anchor}">{_safe(text)}</text>'
        for i, (kind, text) in enumerate(block.lines)
    ]
    return (
        f'<g class="{"untold" if facts.ports is None else "told"}">'
        f"<title>{_safe(wiring.labels[node])}: rank {node}, {told}</title>"
        f'<circle class="disc" cx="{point.x:.1f}" cy="{point.y:.1f}" r="{_DISC:.0f}"/>'
        f'<text class="rank" x="{point.x:.1f}" y="{point.y:.1f}">{node}</text>{"".join(texts)}</g>'
    )


def _cables(wiring: Wiring, points: list[_Point]) -> Iterator[tuple[str, str]]:
    """Each pair's cables, or the lack of one: its kind, and its markup."""
    bearings = _bearings(wiring, points)
    for pair in wiring.pairs:
        a, b = (points[node] for node in pair)
        cables = wiring.between(pair)
        if not cables and not wiring.is_only_a_ring:
            state = wiring.state(pair)
            words = f"{' and '.join(wiring.labels[node] for node in pair)}: {_LEGEND[state][1]}"
            start, end = a.toward(a.bearing(b), _DISC + 6), b.toward(b.bearing(a), _DISC + 6)
            yield state, _line(start, end, 0, state, words, ())
        for i, cable in enumerate(cables):
            kind = kind_of(wiring, cable)
            start, end = (points[at.node].toward(bearings[at], _DISC + _BADGE) for at in (cable.a, cable.b))
            bend = (i - (len(cables) - 1) / 2) * 0.3
            numbers = tuple(str(wiring.port(at).number or "?") for at in (cable.a, cable.b))
            yield kind, _line(start, end, bend, kind, _tooltip(wiring, cable, kind), numbers)


def _bearings(wiring: Wiring, points: list[_Point]) -> dict[End, float]:
    """In which direction from its node each cable end's badge stands: toward its peer, but not on another."""
    found: dict[End, float] = {}
    for node, here in enumerate(points):
        inward = here.bearing(_Point(0, 0))
        wished: dict[End, float] = {}
        for pair in wiring.pairs:
            cables = wiring.between(pair) if node in pair else ()
            for i, cable in enumerate(cables):
                there = points[sum(pair) - node]
                aside = (i - (len(cables) - 1) / 2) * _APART * (1 if node == pair[0] else -1)
                # relative to inward, so that no peer is across the jump from pi to -pi
                wished[cable.end_at(node)] = remainder(here.bearing(there) - inward, 2 * pi) + aside
        ends = sorted(wished, key=lambda end: wished[end])
        for _ in range(_ROUNDS):
            for one, other in pairwise(ends):
                if (overlap := _APART - (wished[other] - wished[one])) > 0:
                    wished[one] -= overlap / 2
                    wished[other] += overlap / 2
        found |= {end: inward + angle for end, angle in wished.items()}
    return found


def _tooltip(wiring: Wiring, cable: Cable, kind: str) -> str:
    def end(at: End) -> str:
        return f"{wiring.place(at)} ({wiring.port(at).interface or 'no interface known'})"

    speed = f", {cable.gbps:g} Gb/s" if cable.gbps is not None else ""
    return f"{end(cable.a)} to {end(cable.b)}{speed}: {_LEGEND[kind][1]}"


def _line(start: _Point, end: _Point, bend: float, kind: str, tooltip: str, ports: tuple[str, ...]) -> str:
    """A cable or the lack of one, bent by a share of its length, with its mark and a badge for each port."""
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
    """The key, in as many rows as it takes: each item with the height of its row."""
    items, x, y = [], left, top
    for kind in kinds:
        sign, words = _LEGEND[kind]
        space = 64 + len(words) * _LETTER
        if x > left and x + space > left + width:
            x, y = left, y + 24
        mark = _badge(_Point(x + 20, y), sign, kind, "mark") if sign else ""
        line = f'<path class="{kind}" d="M{x:.0f} {y:.0f}h40"/>'
        text = f'<text class="dim" x="{x + 50:.0f}" y="{y + 4:.0f}">{_safe(words)}</text>'
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
    """The same as an undirected Graphviz graph; edges carry the ports' interfaces."""
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
    for i, stranger in enumerate(wiring.strangers):
        lines.append(f"  s{i} [label={_quoted(stranger.plugged.label)}, shape=plain];")
        lines.append(
            f"  n{stranger.end.node} -- s{i} [style=dotted, tooltip={_quoted(describe(wiring, stranger))}];"
        )
    return "\n".join([*lines, "}", ""])


def _port_label(wiring: Wiring, end: End) -> str:
    port = wiring.port(end)
    return f"{port.number or '?'} {port.interface or '?'}"


def _quoted(text: str) -> str:
    """A dot string: quotes and backslashes escaped, line ends as dot writes them."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
