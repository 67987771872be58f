"""Blocks of HTML that every panel uses: banner, error, table, text to copy. Pure: text in, HTML out.

Whatever comes in is escaped here. Blocks stand in a `<div class="jk">` and need `STYLE` once on the page:
`page()` puts them together for a widget or a cell's output.
"""

import html
import re
import secrets
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from jaccl_kernel.errors import JacclError

STATIC = Path(__file__).resolve().parents[1] / "static"
STYLE = f"<style>{(STATIC / 'blocks.css').read_text(encoding='utf-8')}</style>"

SEVERITIES = {"error": "✕ Error", "warning": "! Warning"}


class Finding(Protocol):
    """What a list of problems is made of; `cluster.problem.Problem` is one."""

    @property
    def severity(self) -> str:
        """ "error" or "warning"."""

    @property
    def where(self) -> str:
        """Its place."""

    @property
    def message(self) -> str:
        """A sentence."""

    @property
    def fix(self) -> str:
        """What to do."""


def page(*blocks: str) -> str:
    """Blocks with their style: what a widget's value or a cell's output holds. "" for no blocks."""
    body = "".join(blocks)
    return f'{STYLE}<div class="jk">{body}</div>' if body else ""


def escape(text: object) -> str:
    """Any text as text."""
    return html.escape(str(text), quote=True)


def heading(title: str, subtitle: str = "") -> str:
    """A panel's title, and what it is about to work on."""
    small = f'<p class="jk-subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return f'<p class="jk-title">{escape(title)}</p>{small}'


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A sentence or two; `quiet` ones are smaller."""
    return f'<p class="{"jk-quiet" if quiet else "jk-text"}">{escape(text)}</p>'


def rehearsal(note: str) -> str:
    """The banner of everything that shows a rehearsal; `note` starts with REHEARSAL."""
    name, _, rest = note.partition(":")
    text = f"<strong>{escape(name)}</strong><span>{escape(rest.strip())}</span>"
    return f'<p class="jk-banner" role="note">{text}</p>'


def verdict(text: str, state: str) -> str:
    """A finding as one line. `state`: good, fair (told, not a failure), bad or none (nothing was tested)."""
    mark = {"good": "✓", "fair": "≈", "bad": "✕", "none": "–"}[state]
    return f'<p class="jk-verdict jk-{state}"><span aria-hidden="true">{mark}</span> {escape(text)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and their values."""
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="jk-facts">{body}</dl>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table; numbers stand to the right. The same columns and rows as `report.table.render` takes."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    label = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="jk-scroll"><table class="jk-table">{label}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def to_copy(text: str, label: str) -> str:
    """Text that one click selects as a whole."""
    return (
        f'<p class="jk-quiet">{escape(label)}</p>'
        f'<pre class="jk-copy" tabindex="0" aria-label="{escape(label)}" title="A click selects all of it">'
        f"{escape(text)}</pre>"
    )


def figure(svg: str, label: str, ink: str) -> str:
    """An SVG element as part of the page; `label` tells what it shows, its colour `ink` follows the theme."""
    themed = svg.replace(ink, "var(--jp-ui-font-color1, #444)")
    # parts are named by ids, and another figure on the page has the same names
    own = f"f{secrets.token_hex(4)}-"
    themed = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", themed)
    themed = themed.replace("<svg ", '<svg aria-hidden="true" ', 1)
    return f'<div class="jk-figure" role="img" aria-label="{escape(label)}">{themed}</div>'


def folded(summary: str, *blocks: str) -> str:
    """Blocks that show when they are asked for."""
    return f'<details class="jk-folded"><summary>{escape(summary)}</summary>{"".join(blocks)}</details>'


def error(raised: BaseException) -> str:
    """An exception: ours as what, where and fix; another one with its traceback, folded."""
    if isinstance(raised, JacclError):
        words = getattr(raised, "last_words", ())
        parts = [_part("Where", raised.where), f'<p class="jk-what">{escape(raised.what)}</p>']
        parts += [_part("Fix", raised.fix)]
        if words:
            parts += [folded("Its last words", f'<pre class="jk-pre">{escape(chr(10).join(words))}</pre>')]
        return _alert(type(raised).__name__, *parts)
    trace = "".join(traceback.format_exception(raised))
    return _alert(
        "Unexpected error",
        f'<p class="jk-what">{escape(type(raised).__name__)}: {escape(raised)}</p>',
        _part("Fix", "This one is ours to mend: please report it with the traceback below."),
        folded("Traceback", f'<pre class="jk-pre">{escape(trace)}</pre>'),
    )


def stopped(text: str) -> str:
    """A run that ended because its user wanted it to."""
    return f'<p class="jk-verdict jk-none" role="status"><span aria-hidden="true">■</span> {escape(text)}</p>'


def problems(found: Sequence[Finding]) -> str:
    """A list of problems, each with its place and its fix; a line that says so when there are none."""
    if not found:
        return verdict("No problems found in the file.", "good")
    items = "".join(
        f'<li class="jk-problem jk-{escape(one.severity)}">'
        f"<strong>{escape(SEVERITIES[one.severity])}</strong> "
        f'<span class="jk-where">{escape(one.where)}</span><br>{escape(one.message)} '
        f'<span class="jk-fix">Fix: {escape(one.fix)}</span></li>'
        for one in found
    )
    return f'<ul class="jk-problems">{items}</ul>'


def _alert(title: str, *parts: str) -> str:
    return (
        f'<div class="jk-alert" role="alert"><p class="jk-alert-title"><span aria-hidden="true">✕</span> '
        f"{escape(title)}</p>{''.join(parts)}</div>"
    )


def _part(name: str, text: str) -> str:
    return f'<p class="jk-part"><strong>{name}</strong> {escape(text)}</p>' if text else ""
