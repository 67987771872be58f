"""Conversations as the chat keeps them: turns, and what goes to the model. No widgets, no model."""

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
        question: what was asked.
        answer: what came, or None while it is waited for.
        settings: what it was asked with.
        error: why there is no answer, or "".
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
        """Its first question, shortened."""
        if not self.turns:
            return "New conversation"
        first = " ".join(self.turns[0].question.split())
        return first if len(first) <= TITLE_LENGTH else f"{first[: TITLE_LENGTH - 1]}…"

    def messages(self) -> list[dict[str, str]]:
        """As OpenAI's `messages`, the last question included. Turns without an answer are left out."""
        told = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for turn in self.turns[:-1]:
            if turn.answer is not None and turn.answer.text:
                told.append({"role": "user", "content": turn.question})
                told.append({"role": "assistant", "content": turn.answer.text})
        return [*told, {"role": "user", "content": self.turns[-1].question}]

    def to_markdown(self) -> str:
        """To read, or to keep beside other notes."""
        parts = [f"# {self.title}"]
        if self.system.strip():
            parts.append(f"*System:* {self.system}")
        for turn in self.turns:
            parts.append(f"**You:** {turn.question}")
            if turn.answer is not None:
                parts.append(turn.answer.text or "(nothing)")
                parts.append(f"*{turn.answer.figures()}*")
            elif turn.error:
                parts.append(f"*Failed: {turn.error}*")
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """All of it, with settings and figures."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)
