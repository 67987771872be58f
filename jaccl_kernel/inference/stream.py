"""The stream of one request: the engine feeds it tokens, its reader receives typed chunks.

The reader converts tokens to text: on an event loop (`async for`, the server) or on the engine's own thread
(`read`, after each step), so that the engine's step never waits for a tokenizer.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from jaccl_kernel.inference.request import Chunk, Finish, Prefill, Request, RequestError, Text, Token, Usage
from jaccl_kernel.inference.text import Assembler, Part

Item = Token | Prefill | RequestError


class Stream:
    """The chunks of one request; the last is a Finish.

    Args:
        request: the request.
        assembler: converts its tokens to text; None for bare tokens.
        cancel: removes it from the engine; harmless after its end.
        loop: the event loop that reads it; None for a reader on the engine's thread.

    Attributes:
        cached_tokens: how many of the prompt's tokens came from the prompt cache; known at the first token.
        submitted, admitted: `time.perf_counter()` when it was submitted, and when it joined the batch.
        times: when the engine received each of its tokens.
    """

    def __init__(
        self,
        request: Request,
        assembler: Assembler | None,
        cancel: Callable[["Stream"], None],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.request = request
        self.loop = loop
        self.cached_tokens = 0
        self.submitted = time.perf_counter()
        self.admitted: float | None = None
        self.times: list[float] = []
        self.finished = False
        self._assembler = assembler
        self._cancel = cancel
        self._items: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._taken = 0  # tokens that its reader has received
        self._pending: list[Token] = []  # tokens without text so far

    @property
    def first(self) -> float | None:
        """When the engine received its first token."""
        return self.times[0] if self.times else None

    @property
    def gaps(self) -> list[float]:
        """The inter-token latencies in seconds."""
        return [after - before for before, after in itertools.pairwise(self.times)]

    def feed(self, item: Item) -> None:
        """Append the next token, or the error that ends the stream. On the reader's thread."""
        if isinstance(item, Token):
            self.times.append(item.at)
        self._items.append(item)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the chunks. A reader that stops early must cancel the stream in the engine.

        Raises:
            RequestError: the engine ended it.
        """
        while not self.finished:
            self._arrived.clear()
            for chunk in self.read():
                yield chunk
            if not self.finished:
                await self._arrived.wait()

    def read(self) -> Iterator[Chunk]:
        """Yield the chunks of the items so far.

        Raises:
            RequestError: the engine ended it.
        """
        while self._items and not self.finished:
            item = self._items.popleft()
            if isinstance(item, RequestError):
                self.finished = True
                raise item
            if isinstance(item, Prefill):
                yield item
            else:
                yield from self._take(item)

    def stop(self) -> Iterator[Chunk]:
        """End the stream early: yields the remaining chunks, the last with the reason "stopped"."""
        self._cancel(self)
        yield from self.read()
        if not self.finished:
            if self._assembler:
                yield from self._with_tokens(self._assembler.end(cut=True))
            yield self._finish("stopped")

    def _take(self, token: Token) -> Iterator[Chunk]:
        self._taken += 1
        if self._assembler is None:
            yield Text("", (token,))
            if token.finish:
                yield self._finish(token.finish)
            return
        assembler = self._assembler
        if token.finish == "stop":
            yield from self._with_tokens(assembler.end())
            yield self._finish("stop")
            return
        self._pending.append(token)
        yield from self._with_tokens(assembler.add(token.id))
        if assembler.stopped:
            self._cancel(self)
            yield self._finish("stop")
        elif token.finish:
            yield from self._with_tokens(assembler.end(cut=True))
            yield self._finish(token.finish)

    def _with_tokens(self, parts: list[Part]) -> Iterator[Chunk]:
        """Yield the assembler's parts, the first with the tokens since the last part."""
        for part in parts:
            yield replace(part, tokens=tuple(self._pending))
            self._pending = []

    def _finish(self, reason: str) -> Finish:
        self.finished = True
        assembler = self._assembler
        if reason == "stop" and assembler and assembler.called:
            reason = "tool_calls"
        began = self.admitted or self.submitted
        first, last = (self.times[0], self.times[self._taken - 1]) if self._taken else (began, began)
        usage = Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            generated_tokens=self._taken,
            reasoning_tokens=assembler.reasoning_tokens if assembler else 0,
            queued_s=began - self.submitted,
            prefill_s=first - began,
            decode_s=last - first,
        )
        return Finish(reason, usage, tuple(self._pending), assembler.stop if assembler else None)
