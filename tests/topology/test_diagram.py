"""The wiring as SVG and dot."""

import re
import subprocess
from dataclasses import replace
from itertools import combinations
from math import hypot
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.rehearsal.faults import with_faults
from jaccl_kernel.rehearsal.macs import CableSpec, ClusterSpec
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.topology.diagram import dot, headline, svg
from jaccl_kernel.topology.facts import NodeFacts
from jaccl_kernel.topology.wiring import Wiring, build_wiring

SVG = "{http://www.w3.org/2000/svg}"


def wired(n: int, *faults: str) -> Wiring:
    return build_wiring(facts(with_faults(ClusterSpec.healthy(n), faults)))


def lines(wiring: Wiring) -> list[str]:
    """The kinds of all cables that are drawn, without the legend's."""
    root = ElementTree.fromstring(svg(wiring))
    return sorted(path.get("class") or "" for path in root.findall(f"{SVG}g/{SVG}path"))


def words(wiring: Wiring) -> str:
    return " ".join(ElementTree.fromstring(svg(wiring)).itertext())


def test_a_healthy_mesh_is_all_green() -> None:
    assert lines(wired(4)) == ["full"] * 6
    assert headline(wired(4)) == "Full mesh: 6 of 6 pairs connected"


@pytest.mark.parametrize(
    ("faults", "kinds"),
    [
        (["missing-cable:1-3"], ["full", "full", "missing"]),
        (["doubled-cable:1-2"], ["extra", "full", "full", "missing"]),
        (["half-seen:1-2"], ["full", "full", "half"]),
        (["asleep:3"], ["full", "untested", "untested"]),
        (["thunderbolt4:3"], ["full", "slow", "slow"]),
    ],
)
def test_each_state_has_its_own_line(faults: list[str], kinds: list[str]) -> None:
    assert lines(wired(3, *faults)) == kinds


def test_each_state_but_the_good_one_has_its_own_dashes_or_mark() -> None:
    style = svg(wired(1))
    dashes = re.findall(r"path\.(\w+)\{stroke-dasharray:([\d ]+)\}", style)
    assert len({dash for _, dash in dashes}) == len(dashes) == 4
    text = words(wired(4, "missing-cable:1-2", "doubled-cable:1-3", "half-seen:2-3"))
    assert all(mark in text for mark in ("×", "+", "½", "?"))


def test_macs_with_too_few_ports_for_a_mesh_are_drawn_as_a_ring() -> None:
    assert lines(wired(8)) == ["full"] * 8
    assert headline(wired(8)) == "Ring of 8 Macs (too few ports for a mesh)"


def test_ports_and_cables_are_labelled() -> None:
    text = words(wired(3, "dock:2"))
    assert "port 1 of macstudio1 (en3) to port 1 of macstudio2 (en3), 80 Gb/s: seen from both ends" in text
    assert "port 3: TS5 Plus" in text


def test_a_cable_to_itself_and_an_unknown_mac_are_listed_as_text() -> None:
    spec = replace(ClusterSpec.healthy(3), cables=(CableSpec((0, 1), (0, 2)), CableSpec((1, 1), (2, 1))))
    assert "ports 1 and 2: cable to itself" in words(build_wiring(facts(spec)))
    assert "port 1: unknown Mac: Mac Studio" in words(build_wiring(facts(spec)[:2]))


@pytest.mark.parametrize("n", [0, 1])
def test_a_wiring_without_pairs_has_a_diagram(n: int) -> None:
    wiring = build_wiring(facts(ClusterSpec.healthy(1))[:n])
    assert lines(wiring) == []
    assert headline(wiring) in words(wiring)


def test_a_name_cannot_break_the_svg() -> None:
    nodes = [replace(mac, name="<b>&\"'\x00\x1b[31m</svg>") for mac in facts(ClusterSpec.healthy(2))]
    assert "<b>&" in words(build_wiring(nodes))
    assert "n0 -- n1" in dot(build_wiring(nodes))


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_every_name_gives_well_formed_svg(names: list[str]) -> None:
    root = ElementTree.fromstring(svg(build_wiring([NodeFacts(name, name) for name in names])))
    assert root.tag == f"{SVG}svg"


@pytest.mark.parametrize("n", range(2, 8))
def test_badges_do_not_overlap_and_everything_is_inside_the_frame(n: int) -> None:
    faults = ["doubled-cable:1-2"] if n < 7 else []
    root = ElementTree.fromstring(svg(wired(n, *faults)))
    left, top, width, height = (float(x) for x in (root.get("viewBox") or "").split())
    badges = [circle for group in root.iter(f"{SVG}g") if group.get("class") == "badge" for circle in group]
    spots = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in badges if c.tag == f"{SVG}circle"]
    assert len(spots) == 2 * len(wired(n, *faults).cables)
    for (ax, ay), (bx, by) in combinations(spots, 2):
        assert hypot(ax - bx, ay - by) > 18
    assert all(left < x < left + width and top < y < top + height for x, y in spots)


def test_the_svg_is_self_contained() -> None:
    text = svg(wired(4, "dock:1"))
    assert not re.search(r"(?:href|src|url\(|@import)", text)


def test_dot_shows_each_cable_once_with_its_ports() -> None:
    text = dot(wired(3, "missing-cable:1-3", "dock:1"))
    assert 'n0 -- n1 [label="1 en3/1 en3", color="#2b9a52"];' in text
    assert 'n0 -- n2 [color="#d6404c", style=dashed, label="missing"];' in text
    assert 'label="TS5 Plus"' in text
    assert text.count("n1 -- n2") == 1


@pytest.mark.needs("dot")
def test_graphviz_reads_the_dot() -> None:
    nodes = [replace(mac, name='a "b" \\ c') for mac in facts(ClusterSpec.healthy(3))]
    done = subprocess.run(
        ["dot", "-Tsvg"],
        input=dot(build_wiring(nodes)).encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
