"""Blocks of HTML for all panels: banner, error, table, text to copy. Pure.

All text is escaped here. Blocks are in a `<div class="jk">` and need `STYLE` once on the page: `page()` joins
them for a widget or a cell's output.
"""

import html
import re
import secrets
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from jaccl_kernel.core.errors import JacclError

STATIC = Path(__file__).resolve().parents[1] / "static"
STYLE = f"<style>{(STATIC / 'blocks.css').read_text(encoding='utf-8')}</style>"

SEVERITIES = {"error": "✕ Error", "warning": "! Warning"}


class Finding(Protocol):
    """An entry of a list of problems, such as `hostfile.problem.Problem`."""

    @property
    def severity(self) -> str:
        """ "error" or "warning"."""

    @property
    def where(self) -> str:
        """The place of the problem."""

    @property
    def message(self) -> str:
        """The problem, as a sentence."""

    @property
    def fix(self) -> str:
        """How to fix it."""


def page(*blocks: str) -> str:
    """Blocks with their style, for a widget's value or a cell's output; "" for no blocks."""
    body = "".join(blocks)
    return f'{STYLE}<div class="jk">{body}</div>' if body else ""


def escape(text: object) -> str:
    """Text, escaped for HTML."""
    return html.escape(str(text), quote=True)


def heading(title: str, subtitle: str = "") -> str:
    """A panel's title and subtitle."""
    small = f'<p class="jk-subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return f'<p class="jk-title">{escape(title)}</p>{small}'


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A paragraph; a `quiet` one is smaller."""
    return f'<p class="{"jk-quiet" if quiet else "jk-text"}">{escape(text)}</p>'


def rehearsal(note: str) -> str:
    """The banner of a rehearsal; `note` starts with REHEARSAL."""
    name, _, rest = note.partition(":")
    text = f"<strong>{escape(name)}</strong><span>{escape(rest.strip())}</span>"
    return f'<p class="jk-banner" role="note">{text}</p>'


def verdict(text: str, state: str) -> str:
    """A verdict as one line. `state`: good, fair (not a failure), bad or none (not tested)."""
    mark = {"good": "✓", "fair": "≈", "bad": "✕", "none": "–"}[state]
    return f'<p class="jk-verdict jk-{state}"><span aria-hidden="true">{mark}</span> {escape(text)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f'<dl class="jk-facts">{body}</dl>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table with the columns and rows of `report.table.render`."""
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
    """A text that one click selects."""
    return (
        f'<p class="jk-quiet">{escape(label)}</p>'
        f'<pre class="jk-copy" tabindex="0" aria-label="{escape(label)}" title="Click to select all">'
        f"{escape(text)}</pre>"
    )


def figure(svg: str, label: str, ink: str) -> str:
    """An SVG image with a `label` for screen readers; its color `ink` follows the theme."""
    themed = svg.replace(ink, "var(--jp-ui-font-color1, #444)")
    # ids must be unique on the page, and other figures use the same ids
    own = f"f{secrets.token_hex(4)}-"
    themed = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", themed)
    themed = themed.replace("<svg ", '<svg aria-hidden="true" ', 1)
    return f'<div class="jk-figure" role="img" aria-label="{escape(label)}">{themed}</div>'


def folded(summary: str, *blocks: str) -> str:
    """Collapsed blocks."""
    return f'<details class="jk-folded"><summary>{escape(summary)}</summary>{"".join(blocks)}</details>'


def error(raised: BaseException) -> str:
    """An exception: a JacclError as what, where and fix; others with their traceback, collapsed."""
    if isinstance(raised, JacclError):
        lines = getattr(raised, "last_lines", ())
        parts = [_part("Where", raised.where), f'<p class="jk-what">{escape(raised.what)}</p>']
        parts += [_part("Fix", raised.fix)]
        if lines:
            parts += [folded("Last output", f'<pre class="jk-pre">{escape(chr(10).join(lines))}</pre>')]
        return _alert(type(raised).__name__, *parts)
    trace = "".join(traceback.format_exception(raised))
    return _alert(
        "Unexpected error",
        f'<p class="jk-what">{escape(type(raised).__name__)}: {escape(raised)}</p>',
        _part("Fix", "This is a bug: please report it with the traceback below."),
        folded("Traceback", f'<pre class="jk-pre">{escape(trace)}</pre>'),
    )


def stopped(text: str) -> str:
    """A run that its user stopped."""
    return f'<p class="jk-verdict jk-none" role="status"><span aria-hidden="true">■</span> {escape(text)}</p>'


def problems(found: Sequence[Finding]) -> str:
    """A list of problems with place and fix, or a line that there are none."""
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
