"""The conversations of the chat: turns, and the messages for the model. Contains no widgets."""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from jaccl_kernel.notebook.answer import Answer

TITLE_LENGTH = 40


@dataclass
class Turn:
    """A question and its answer.

    Attributes:
        question: the user's text.
        answer: the answer, or None while it is pending.
        settings: the settings of the request.
        error: the error, if there is no answer, or "".
    """

    question: str
    answer: Answer | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Conversation:
    """Turns under one system prompt."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    @property
    def title(self) -> str:
        """The first question, shortened."""
        if not self.turns:
            return "New conversation"
        first = " ".join(self.turns[0].question.split())
        return first if len(first) <= TITLE_LENGTH else f"{first[: TITLE_LENGTH - 1]}…"

    def messages(self) -> list[dict[str, str]]:
        """OpenAI's `messages`, including the last question, without the turns that have no answer."""
        messages = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:-1]:
            if turn.answer is not None and turn.answer.text:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer.text})
        return [*messages, {"role": "user", "content": self.turns[-1].question}]

    def to_markdown(self) -> str:
        """The conversation as Markdown."""
        parts = [f"# {self.title}"]
        if self.system.strip():
            parts.append(f"*System:* {self.system}")
        for turn in self.turns:
            parts.append(f"**You:** {turn.question}")
            if turn.answer is not None:
                parts.append(turn.answer.text or "(empty)")
                parts.append(f"*{turn.answer.figures()}*")
            elif turn.error:
                parts.append(f"*Failed: {turn.error}*")
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """The conversation as JSON, with settings and figures."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)
