"""One answer at a time on resident ranks: rank 0 makes the prompt and the text, all ranks step together.

The same requests, templates, sampling and prompt caches as the server's, without HTTP and without its control
plane: every rank runs the same loop here, and what rank 0 decides travels in collectives.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from jaccl_kernel.errors import InputError
from jaccl_kernel.ranks.agree import WIDTH, Stop
from jaccl_kernel.ranks.serve import CACHE_SHARE, Loaded
from jaccl_kernel.ranks.world import World
from jaccl_kernel.server import schema
from jaccl_kernel.server.batch import Token
from jaccl_kernel.server.cache import CacheIndex
from jaccl_kernel.server.chat import Prompt, chat_prompt, completion_prompts
from jaccl_kernel.server.engine import Add, Plan
from jaccl_kernel.server.generation import Sampling, Served, ServerError
from jaccl_kernel.server.sampling import Row
from jaccl_kernel.server.text import Assembler


class Prompting:
    """Answers with a loaded model, and what is kept between answers.

    Args:
        loaded: the model, made ready for batches.
        world, group: as of a rank program.
        stop: whether to stop.
        context: tokens that prompt and answer may have together, as of the model.
    """

    def __init__(self, loaded: Loaded, world: World, group: Any, stop: Stop, context: int) -> None:
        self._loaded = loaded
        self._context = max(2, min(context, loaded.capacity))
        self._group = group
        self._leads = world.rank == 0
        self._stop = stop
        self._cache = CacheIndex(int(loaded.capacity * CACHE_SHARE))
        self._numbers = itertools.count()
        self._done = False
        loaded.chooser.wants_stop = lambda: self._done or stop.wanted()

    def answer(self, body: dict[str, Any], say: Callable[..., None]) -> dict[str, Any] | None:
        """Answer a chat request (`messages`), or go on from a text (`prompt`); on every rank at once.

        Args:
            body: as of OpenAI's API.
            say: is told `content` and `reasoning` as they come, on rank 0.

        Returns, on rank 0: `text`, `reasoning`, `finish` ("stop", "length", "stopped"), `prompt_tokens`,
        `cached_tokens`, `tokens`, and, in seconds and tokens a second, `ttft_s`, `tokens_per_s`.

        Raises:
            InputError: the request makes no sense.
        """
        try:
            with mx.stream(generation_stream):
                return self._answer(body, say)
        finally:
            with mx.stream(generation_stream):
                self._tidy()
                mx.synchronize(generation_stream)

    def _answer(self, body: dict[str, Any], say: Callable[..., None]) -> dict[str, Any] | None:
        began = time.perf_counter()
        self._done = False
        asked = self._ask(body) if self._leads else None
        refused = asked if isinstance(asked, Exception) else None
        mine = asked if isinstance(asked, _Asked) else None
        tokens = self._tell_tokens(mine.prompt.tokens if mine else [])
        if refused:
            raise refused
        if not tokens:
            return None  # rank 0 says why
        [limit] = self._tell([mine.limit if mine else 0])
        number = next(self._numbers)
        reader = None
        if mine:
            reader = _Reader(self._loaded.tokenizer, mine, say, began)
            self._loaded.chooser.rows[number] = Row(mine.sampling, tokens)
        cached = self._run(number, tokens, limit, reader)
        return reader.result(len(tokens), cached) if reader else None

    def _run(self, number: int, tokens: list[int], limit: int, reader: "_Reader | None") -> int:
        """Generate; how many tokens of the prompt were in the cache."""
        share, chooser = self._loaded.share, self._loaded.chooser
        found = self._cache.find(tokens)
        used = found.length if found else 0
        use = (found.number, found.length, found.trim) if found else None
        plan = Plan(add=[Add(number, tokens[used:], limit, use)])
        while True:
            made = share.apply(plan, lambda add: tokens[:used])
            ended = self._take(made, reader)
            stopped = chooser.stop_agreed() if made else self._stop.agreed()
            plan = Plan()
            if ended or stopped:
                break
        if reader and not ended:
            reader.stop()
        self._keep(number, ended)
        return used

    def _take(self, made: list[Token], reader: "_Reader | None") -> bool:
        """Read a step's token, if there is one; whether it was the last."""
        for token in made:
            if reader and reader.take(token):
                self._done = True  # a stop string is complete: the others hear of it with the next choice
        return any(token.finish for token in made)

    def _keep(self, number: int, ended: bool) -> None:
        """Take the sequence out where it still runs, and keep its cache for the next turn."""
        share = self._loaded.share
        if not ended:
            share.batch.remove(number)
        plan = Plan(step=False)
        for sequence, one in share.batch.held.items():
            kept, dropped = self._cache.add(one.tokens, trimmable=one.trimmable)
            plan.drop += dropped
            if kept is not None:
                plan.keep.append((sequence, kept, False))
        share.apply(plan)

    def _tidy(self) -> None:
        """After an answer, however it ended: no sequence runs."""
        share = self._loaded.share
        share.apply(Plan(remove=share.batch.sequences(), step=False))
        share.batch.held.clear()
        self._loaded.chooser.rows.clear()

    def _ask(self, body: dict[str, Any]) -> "_Asked | Exception":
        """Rank 0: read the request."""
        try:
            asked = self._read(body)
        except ServerError as error:
            return InputError(error.message)
        if asked.prompt.grammar:
            return InputError("formats and forced tools are the server's", fix="Use ranks.serve().")
        return asked

    def _read(self, body: dict[str, Any]) -> "_Asked":
        loaded = self._loaded
        context = self._context
        tokenizer = loaded.tokenizer
        served = Served("resident", tokenizer, context, loaded.vocabulary, boundaries=loaded.boundaries)
        if "messages" in body:
            chat = schema.validate(schema.ChatRequest, body)
            prompt, limit, asked = chat_prompt(chat, served), chat.limit(), chat
        else:
            plain = schema.validate(schema.CompletionRequest, body)
            [prompt] = completion_prompts(plain, served)
            limit, asked = plain.limit(), plain  # type: ignore[assignment]
        limit = min(limit or context, context - len(prompt.tokens))
        return _Asked(prompt, asked.sampling(loaded.vocabulary), limit, asked.stops())

    def _tell_tokens(self, tokens: list[int]) -> list[int]:
        """Rank 0's prompt, on every rank; nothing if it has refused."""
        [count] = self._tell([len(tokens)])
        return self._tell(tokens or [0] * count) if count else []

    def _tell(self, numbers: list[int]) -> list[int]:
        if self._group is None:
            return numbers
        count = len(numbers)
        mine = numbers if self._leads else [0] * count
        padded = mine + [0] * max(0, WIDTH - count)
        total = mx.distributed.all_sum(mx.array(padded, dtype=mx.uint32), group=self._group)
        return [int(one) for one in total.tolist()][:count]


@dataclass(frozen=True)
class _Asked:
    """A request that makes sense."""

    prompt: Prompt
    sampling: Sampling
    limit: int
    stops: tuple[str, ...]


class _Reader:
    """Rank 0's view of one answer: text, and times."""

    def __init__(self, tokenizer: Any, asked: _Asked, say: Callable[..., None], began: float) -> None:
        self._assembler = Assembler(tokenizer, stops=asked.stops, begins=asked.prompt.begins)
        self._say = say
        self._began = began
        self._first = self._last = 0.0
        self._tokens = 0
        self._text = self._reasoning = ""
        self._finish = ""

    def take(self, token: Token) -> bool:
        """Take a token; True if it completed a stop string."""
        if self._finish:
            return False
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._tokens += 1
        if token.finish == "stop":
            pieces = [self._assembler.end()]
        else:
            pieces = [self._assembler.add(token.token)]
            if token.finish and not pieces[0].stopped:
                pieces.append(self._assembler.end(cut=True))
        for piece in pieces:
            self._tell(piece)
        if pieces[0].stopped:
            self._finish = "stop"
            return token.finish is None
        self._finish = token.finish or ""
        return False

    def stop(self) -> None:
        """It was stopped from outside, or by its own stop string."""
        if not self._finish:
            self._tell(self._assembler.end(cut=True))
            self._finish = "stopped"

    def _tell(self, piece: Any) -> None:
        if piece.content or piece.reasoning:
            self._text += piece.content
            self._reasoning += piece.reasoning
            self._say(content=piece.content, reasoning=piece.reasoning)

    def result(self, prompt_tokens: int, cached: int) -> dict[str, Any]:
        """All of it."""
        span = self._last - self._first
        return {
            "text": self._text,
            "reasoning": self._reasoning,
            "finish": self._finish,
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached,
            "tokens": self._tokens,
            "ttft_s": self._first - self._began if self._first else None,
            "tokens_per_s": (self._tokens - 1) / span if span > 0 else None,
        }
