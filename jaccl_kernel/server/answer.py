"""One choice of an answer: the engine's steps read, assembled into text, and counted. Knows no HTTP.

Leaves the engine's batch as soon as a stop string is complete, and whenever its reader goes away.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from jaccl_kernel.server.generation import Engine, Step, Stream
from jaccl_kernel.server.text import Assembler, Piece


@dataclass
class Delta:
    """What came since the last one: text, the steps behind it, and at the end why it ended."""

    piece: Piece
    steps: list[Step] = field(default_factory=list)
    finish: str | None = None


class Choice:
    """One sequence of an answer.

    Attributes:
        tokens: how many were generated, a token that ended the text included.
        finish: why it ended, once it has: "stop", "length" or "tool_calls".
        left: whether nobody reads it any more.
    """

    def __init__(self, index: int, engine: Engine, stream: Stream, assembler: Assembler) -> None:
        self.index = index
        self.stream = stream
        self.assembler = assembler
        self.tokens = 0
        self.finish: str | None = None
        self.left = False
        self.last: float | None = None
        self.gaps: list[float] = []
        self._engine = engine

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The answer as it comes; the last delta carries `finish`."""
        held: list[Step] = []  # of tokens whose text is held back
        try:
            async for step in self.stream:
                self._count()
                piece, finish = self._take(step)
                if step.finish != "stop":
                    held.append(step)
                if piece or finish:
                    yield Delta(piece, held, finish)
                    held = []
                if finish:
                    self.finish = finish
                    return
        finally:
            self._engine.cancel(self.stream)

    def _take(self, step: Step) -> tuple[Piece, str | None]:
        if step.finish == "stop":
            piece = self.assembler.end()
        else:
            piece = self.assembler.add(step.token)
            if piece.stopped:
                return piece, self._reason("stop")
            if step.finish:
                rest = self.assembler.end(cut=True)
                piece.content += rest.content
                piece.reasoning += rest.reasoning
                piece.calls += rest.calls
        return piece, self._reason(step.finish) if step.finish else None

    def _reason(self, finish: str) -> str:
        return "tool_calls" if finish == "stop" and self.assembler.called else finish

    def _count(self) -> None:
        now = time.perf_counter()
        if self.last is not None:
            self.gaps.append(now - self.last)
        self.last = now
        self.tokens += 1

    def timings(self) -> dict[str, Any]:
        """How long it took: prompt and generation, in tokens, milliseconds and tokens a second."""
        stream = self.stream
        first, last = stream.first or 0.0, self.last or 0.0
        began = stream.admitted or stream.submitted
        fresh = len(stream.generation.prompt) - stream.cached_tokens
        prompt_s, answer_s = max(first - began, 1e-9), max(last - first, 0.0)
        after = self.tokens - 1
        return {
            "queued_ms": round((began - stream.submitted) * 1e3, 3),
            "cache_n": stream.cached_tokens,
            "prompt_n": fresh,
            "prompt_ms": round(prompt_s * 1e3, 3),
            "prompt_per_second": round(fresh / prompt_s, 3),
            "predicted_n": self.tokens,
            "predicted_ms": round(answer_s * 1e3, 3),
            "predicted_per_second": round(after / answer_s, 3) if after > 0 and answer_s else None,
        }
