"""Builds Lark grammars for llguidance: literal text with a tokenizer's own tokens, JSON, free text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

COMPACT = {"whitespace_flexible": False}  # otherwise a small model fills its answer with whitespace


class Lark:
    """A grammar in the making.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper; its added tokens match only by id.
        strict: whether a schema's keyword that llguidance cannot enforce is an error.
    """

    def __init__(self, tokenizer: Any, *, strict: bool = False) -> None:
        self._ids: dict[str, int] = dict(tokenizer.get_added_vocab())
        longest = sorted(filter(None, self._ids), key=len, reverse=True)
        self._added = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else None
        added = tokenizer.added_tokens_decoder.values()
        self._special = {one.content for one in added if one.special or one.content.startswith("<")}
        self._strict = strict
        self._rules: dict[str, str] = {}  # body -> name

    def literal(self, text: str) -> str:
        """Return an expression for this text."""
        parts = self._added.split(text) if self._added else [text]
        found = [
            f"<[{self._ids[part]}]>" if part in self._ids else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        ]
        return " ".join(found) or '""'

    def regex(self, pattern: str) -> str:
        """Return an expression for a regular expression (without slashes)."""
        return self._named(f": /{pattern}/", "T")

    def until(self, close: str) -> str:
        """Return an expression for any text and the marker that ends it."""
        first = self._added.match(close) if self._added else None
        if first and first[0] in self._special:  # llguidance matches such a token with no text
            return f"{self.regex('(?s:.*)')} {self.literal(close)}"
        return self._named(f"[suffix={json.dumps(close, ensure_ascii=False)}]: /(?s:.*)/", "r")

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for JSON that follows a schema."""
        guidance = COMPACT | {"lenient": not self._strict}
        return "%json " + json.dumps({**schema, "x-guidance": guidance}, ensure_ascii=True)

    def one_of(self, expressions: Sequence[str]) -> str:
        """Return an expression for one of these."""
        return self.rule(" | ".join(expressions)) if len(expressions) > 1 else expressions[0]

    def rule(self, body: str) -> str:
        """Return the name of a rule with this body."""
        return self._named(f": {body}", "r")

    def reserve(self) -> str:
        """Return a name for a rule whose body is not known yet; see define."""
        name = f"r{len(self._rules)}"
        self._rules[f"reserved {name}"] = name
        return name

    def define(self, name: str, body: str) -> None:
        """Give a reserved rule its body."""
        self._rules = {
            (f": {body}\x00{name}" if known == f"reserved {name}" else known): one
            for known, one in self._rules.items()
        }

    def grammar(self, start: str) -> str:
        """Return the complete grammar."""
        rules = [name + body.split("\x00")[0] for body, name in self._rules.items()]
        return "\n".join([f"start: {start}", *rules])

    def _named(self, body: str, prefix: str) -> str:
        return self._rules.setdefault(body, f"{prefix}{len(self._rules)}")
