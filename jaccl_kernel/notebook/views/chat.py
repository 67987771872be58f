"""A conversation as HTML: questions, and answers in Markdown with their figures. Pure."""

from collections.abc import Sequence

from markdown_it import MarkdownIt

from jaccl_kernel.notebook.conversation import Turn
from jaccl_kernel.notebook.views import blocks

# a model's HTML is shown as text and its images are not loaded: no answer causes a network request
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def chat(turns: Sequence[Turn], live: tuple[str, str] | None = None) -> str:
    """The turns; `live` is (text, reasoning) of the last answer so far."""
    return "".join(_turn(turn, live if turn is turns[-1] else None) for turn in turns)


def markdown(text: str) -> str:
    """A model's Markdown as HTML without scripts and external content."""
    return str(_MARKDOWN.render(text))


def _turn(turn: Turn, live: tuple[str, str] | None) -> str:
    parts = [f'<div class="jk-question">{blocks.escape(turn.question)}</div>']
    answer = turn.answer
    text, reasoning = (answer.text, answer.reasoning) if answer else live or ("", "")
    if reasoning:
        opened = " open" if not text else ""
        parts.append(
            f'<details class="jk-folded"{opened}><summary>Reasoning</summary>'
            f'<div class="jk-reasoning">{blocks.escape(reasoning)}</div></details>'
        )
    if answer or live is not None:
        parts.append(f'<div class="jk-answer">{markdown(text)}</div>')
    if answer:
        parts.append(f'<p class="jk-quiet">{blocks.escape(answer.figures())}</p>')
    elif turn.error:
        parts.append(f'<p class="jk-verdict jk-bad">{blocks.escape(turn.error)}</p>')
    elif live is not None and not any(live):
        parts.append('<p class="jk-quiet">…</p>')
    return f'<div class="jk-turn">{"".join(parts)}</div>'
