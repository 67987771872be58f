"""Every module, package and definition that docs/architecture.md and CONTRIBUTING.md name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ("docs/architecture.md", "CONTRIBUTING.md")
PLACE = r"(?:jaccl_kernel|tests|docs|notebooks|\.github)(?:/[\w.-]+)*"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCS)
def test_every_place_that_is_named_exists(name: str) -> None:
    named = set(re.findall(rf"(?<![\w/.-]){PLACE}", text_of(name)))
    assert len(named) > 10
    assert sorted(place for place in named if not (ROOT / place.rstrip(".")).exists()) == []


def test_each_documented_definition_exists() -> None:
    """A module and the names behind it in parentheses: `a/b.py` (`one`, `two`)."""
    told = re.findall(rf"`({PLACE}\.py)`\s+\(((?:`\w+`(?:,\s+)?)+)\)", text_of("docs/architecture.md"))
    names = [(place, name) for place, listed in told for name in re.findall(r"\w+", listed)]
    assert len(names) > 40
    assert [
        f"{place}: {name}"
        for place, name in names
        if not re.search(rf"^\s*(?:async def|def|class) {name}\b", text_of(place), re.MULTILINE)
    ] == []


def test_the_glossary_is_short_and_each_term_names_its_definition() -> None:
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+?) \|$",
        text_of("docs/architecture.md").partition("## Glossary")[2],
        re.MULTILINE,
    )
    terms = [term for term, _, _ in rows if term != "term"]
    assert len(terms) == len(set(terms)) <= 40
    assert {"node", "rank", "hostfile", "coordinator", "mesh", "ring", "engine", "plan", "TTFT"} <= set(terms)
    defined = [place for term, _, place in rows if term != "term"]
    assert [
        place for place in defined if not re.fullmatch(rf"`{PLACE}\.py` \(`\w+`(?:, `\w+`)*\)", place)
    ] == []


@pytest.mark.parametrize(("walk", "hops"), [("chat", 24), ("benchmark", 21), ("sync", 24), ("prompt on", 16)])
def test_each_walk_names_fewer_modules_than_before_the_rooms_were_redrawn(walk: str, hops: int) -> None:
    [section] = re.findall(
        rf"^## A {walk}.*?(?=^## )", text_of("docs/architecture.md"), re.MULTILINE | re.DOTALL
    )
    assert 0 < len(re.findall(rf"{PLACE}\.py", section)) < hops


def test_every_package_is_in_the_picture_or_its_table() -> None:
    text = text_of("docs/architecture.md")
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("jaccl_kernel/*/__init__.py")}
    assert sorted(package for package in packages if f"`{package}`" not in text) == []


def test_the_changelog_has_the_next_version_and_this_one() -> None:
    version = re.search(r'^version = "(.*)"', text_of("pyproject.toml"), re.MULTILINE)
    told = re.findall(r"^## \[(.*?)\]", text_of("CHANGELOG.md"), re.MULTILINE)
    assert told[0] == "Unreleased"
    assert version is None or version[1] in told  # None: told elsewhere
