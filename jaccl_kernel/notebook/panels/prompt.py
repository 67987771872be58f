"""The chat panel: prompts to the running server or the resident ranks, with streamed answers.

Several conversations, each with a system prompt; settings for the next answer; stop, retry, edit and export.
Conversations are lost with the kernel unless they are exported.
"""

import asyncio
import base64
import threading
import time
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.core.errors import InputError, JacclError
from jaccl_kernel.notebook import prompting
from jaccl_kernel.notebook.answer import Answer
from jaccl_kernel.notebook.conversation import Conversation, Turn
from jaccl_kernel.notebook.panels.base import STYLE, html_block, wide
from jaccl_kernel.notebook.prompting import Source
from jaccl_kernel.notebook.views import blocks
from jaccl_kernel.notebook.views.chat import chat
from jaccl_kernel.notebook.work import Work, without_traceback
from jaccl_kernel.rehearsal import homes

DRAW_S = 0.1  # between two redraws of an answer


class PromptPanel(widgets.VBox):
    """A chat. `answer` is the last Answer.

    Args:
        at: the server or the ranks; None for the running ones when a prompt is sent.
        system: the system prompt of the first conversation.
        max_tokens, temperature, top_p: first values of the settings.
        more: settings of OpenAI's API without a box here: stop, logit_bias, …
    """

    def __init__(
        self,
        at: Source | None = None,
        *,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 1.0,
        **more: Any,
    ) -> None:
        self._more = more
        self.at = at
        self.answer: Answer | None = None
        self.conversations = [Conversation(system)]
        self._stop = threading.Event()
        self._live: tuple[str, str] | None = None
        self._drawn = 0.0
        self._work = Work("the answer", on_end=self._ended)
        self.whom = html_block()
        self.choice = widgets.Dropdown(description="Conversation", style=STYLE, layout=wide())
        self.new_button = widgets.Button(description="New", icon="plus")
        self.system = widgets.Textarea(system, rows=1, description="System", style=STYLE, layout=wide())
        self.max_tokens = _setting(widgets.BoundedIntText, max_tokens, "Max tokens", 1, 1_000_000)
        self.temperature = _setting(widgets.BoundedFloatText, temperature, "Temperature", 0.0, 2.0, step=0.1)
        self.top_p = _setting(widgets.BoundedFloatText, top_p, "Top p", 0.0, 1.0, step=0.05)
        self.seed = widgets.Text(
            "", description="Seed", placeholder="none", style=STYLE, layout=widgets.Layout(width="220px")
        )
        self.view = html_block()
        self.error_view = html_block()
        self.question = widgets.Textarea(
            "", rows=3, placeholder="Your prompt", description="You", style=STYLE, layout=wide()
        )
        self.send_button = widgets.Button(description="Send", icon="paper-plane", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.retry_button = widgets.Button(description="Retry", icon="refresh", disabled=True)
        self.edit_button = widgets.Button(description="Edit", icon="pencil", disabled=True)
        self.export_button = widgets.Button(description="Export", icon="download", disabled=True)
        self.exported = html_block()
        self._wire()
        row = widgets.Layout(flex_flow="row wrap")
        super().__init__(
            [
                html_block(blocks.heading("Prompt")),
                self.whom,
                widgets.HBox([self.choice, self.new_button], layout=row),
                self.system,
                widgets.HBox([self.max_tokens, self.temperature, self.top_p, self.seed], layout=row),
                self.view,
                self.error_view,
                self.question,
                widgets.HBox(
                    [
                        self.send_button,
                        self.stop_button,
                        self.retry_button,
                        self.edit_button,
                        self.export_button,
                    ],
                    layout=row,
                ),
                self.exported,
            ],
            layout=widgets.Layout(padding="4px 2px", max_width="1000px"),
        )
        self.add_class("jk-panel")
        self._list()
        self._draw()

    @property
    def conversation(self) -> Conversation:
        """The conversation that is shown."""
        return self.conversations[self.choice.value or 0]

    def settings(self) -> dict[str, Any]:
        """The settings of the next answer."""
        given: dict[str, Any] = self._more | {
            "max_tokens": self.max_tokens.value,
            "temperature": self.temperature.value,
            "top_p": self.top_p.value,
        }
        if self.seed.value.strip():
            given["seed"] = _number(self.seed.value.strip())
        return given

    def send(self, question: str) -> None:
        """Send a prompt and return at once; the answer is shown in the panel.

        Raises:
            Busy: the last answer is not complete.
            JacclError: no server or ranks are running, or a setting is invalid.
        """
        at = self.at or prompting.source()
        settings = self.settings()
        conversation = self.conversation
        conversation.system = self.system.value
        self._stop.clear()
        turn = Turn(question, settings=settings)
        banner = blocks.rehearsal(homes.NOTE) if at.rehearsal else ""

        async def work() -> Answer:
            self.error_view.value = self.exported.value = ""
            self.whom.value = blocks.page(banner, blocks.paragraph(f"Answered by {at.name}", quiet=True))
            self._busy(True)
            conversation.turns.append(turn)
            self._live = ("", "")
            self._list()
            self._draw()
            return await asyncio.to_thread(
                at.ask, conversation.messages(), self._on_text, self._stop, **settings
            )

        self._work.start(work)

    async def ask(self, question: str) -> Answer:
        """Send a prompt from a cell and wait: `await panel.ask("…")`. An interrupt stops the answer."""
        with without_traceback():
            self.send(question)
        try:
            with without_traceback():
                return await self._work.wait()
        except asyncio.CancelledError:
            self.stop()
            return await self._work.wait()

    def stop(self) -> None:
        """Stop the answer; the partial text is kept."""
        self._stop.set()

    def retry(self) -> None:
        """Send the last question again, with the present settings."""
        if self.conversation.turns and not self._work.running:
            last = self.conversation.turns.pop()
            self.send(last.question)

    def edit(self) -> None:
        """Move the last question back into the box."""
        if self.conversation.turns and not self._work.running:
            self.question.value = self.conversation.turns.pop().question
            self._list()
            self._draw()

    def new(self) -> None:
        """Start another conversation with the same system prompt."""
        if not self._work.running:
            self.conversations.append(Conversation(self.system.value))
            self._list(len(self.conversations) - 1)
            self._draw()

    def export(self) -> None:
        """Show links to save the conversation as Markdown and JSON."""
        one = self.conversation
        links = [
            _download(f"conversation.{kind}", mime, text)
            for kind, mime, text in (
                ("md", "text/markdown", one.to_markdown()), ("json", "application/json", one.to_json())
            )
        ]  # fmt: skip
        self.exported.value = blocks.page(f"<p>{' · '.join(links)}</p>")

    def _wire(self) -> None:
        self.send_button.on_click(lambda _: self._click_send())
        self.stop_button.on_click(lambda _: self.stop())
        self.retry_button.on_click(lambda _: self._try(self.retry))
        self.edit_button.on_click(lambda _: self.edit())
        self.new_button.on_click(lambda _: self.new())
        self.export_button.on_click(lambda _: self.export())
        self.choice.observe(lambda _: self._show_chosen(), "value")

    def _click_send(self) -> None:
        question = self.question.value
        if question.strip() and self._try(lambda: self.send(question)):
            self.question.value = ""

    def _try(self, what: Any) -> bool:
        try:
            what()
        except JacclError as error:
            self.error_view.value = blocks.page(blocks.error(error))
            return False
        return True

    def _on_text(self, content: str, reasoning: str) -> None:
        text, thought = self._live or ("", "")
        self._live = (text + content, thought + reasoning)
        if time.monotonic() - self._drawn > DRAW_S:
            self._draw()

    def _ended(self, result: Any, error: BaseException | None) -> None:
        turn = self.conversation.turns[-1]
        self._live = None
        if error is None:
            self.answer = turn.answer = result
        else:
            turn.error = error.what if isinstance(error, JacclError) else f"{type(error).__name__}: {error}"
            self.error_view.value = blocks.page(blocks.error(error))
        self._draw()
        self._busy(False)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self.view.value = blocks.page(chat(self.conversation.turns, self._live))

    def _busy(self, busy: bool) -> None:
        some = bool(self.conversation.turns)
        self.stop_button.disabled = not busy
        for button in (self.send_button, self.new_button, self.choice):
            button.disabled = busy
        for button in (self.retry_button, self.edit_button, self.export_button):
            button.disabled = busy or not some

    def _list(self, chosen: int | None = None) -> None:
        at = chosen if chosen is not None else self.choice.value or 0
        self.choice.options = [(one.title, number) for number, one in enumerate(self.conversations)]
        self.choice.value = at

    def _show_chosen(self) -> None:
        if self.choice.value is not None and not self._work.running:
            self.system.value = self.conversation.system
            self._draw()
            self._busy(False)


def _setting(kind: Any, value: float, label: str, least: float, most: float, **more: Any) -> Any:
    return kind(
        value,
        min=least,
        max=most,
        description=label,
        style=STYLE,
        layout=widgets.Layout(width="220px"),
        **more,
    )


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"the seed must be a whole number (got {text!r})", fix="Use a whole number, or leave it empty."
        ) from None


def _download(name: str, mime: str, text: str) -> str:
    data = base64.b64encode(text.encode()).decode("ascii")
    return f'<a download="{name}" href="data:{mime};base64,{data}">{name}</a>'
