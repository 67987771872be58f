"""What is written in plain English stays so: no private phrase in strings, documents and notebooks."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaccl_kernel"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")])
PRIVATE = (
    # what a person or a machine does not do
    r"is told\b",
    r"\btold (?:of|its|nothing|not)\b",
    r"did not tell",
    r"falls? silent",
    r"went silent",
    r"said nothing",
    r"says nothing",
    r"its own words",
    r"last words",
    r"\bwith us\b",
    r"lets? us in",
    r"hung up",
    # riddles
    r"what comes back",
    r"what is left\b",
    r"it worked when",
    r"when it did not",
    r"makes? no sense",
    r"badly written",
    r"held against",
    r"the far (?:end|one|side|shell|node|Mac)",
    r"\bfar (?:rank|process)",
    r"brings? along",
    r"in place of one",
    r"whatever stands",
    r"stands? (?:at|in|on|there|twice) ",
    # inversions and old forms
    r"\bnobody\b",
    r"\bno one\b",
    r"\bsomebody\b",
    r"is no (?:folder|text|hostfile|model|list)",
    r"has it whole",
    r"whole and identical",
    r"whole or not at all",
    r"made whole",
    r"half a character",
    r"no yes was given",
    r"\bmend(?:s|ed)?\b",
    r"start again what",
    r"seconds? a (?:token|node|rank)",
    r"honest lights",
    r"ranks that stay",
    r"whoever",
    r"over there",
    r"\bat the most\b",
    r"to the letter",
    r"goes on (?:from|until|without)",
    r"outgrows?",
)
PATTERN = re.compile("|".join(PRIVATE), re.IGNORECASE)


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module, the lines of a document, or the cells of a notebook, each with its number."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    if path.suffix == ".ipynb":
        yield from enumerate("".join(cell["source"]) for cell in json.loads(text)["cells"])
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", [*MODULES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_string_has_a_private_phrase(path: Path) -> None:
    found = [
        f"{line}: {match[0]!r} in {' '.join(text.split())[:80]!r}"
        for line, text in strings(path)
        if (match := PATTERN.search(text))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["it is told of", "nobody has it whole", "is no folder here", "held against"]
)
def test_a_private_phrase_is_found(text: str) -> None:
    assert PATTERN.search(text)
